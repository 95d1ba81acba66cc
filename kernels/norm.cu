// rms_norm, norm_add, branch_norm: Gemma's RMSNorm, alone or of a branch added to the residual stream.
//
//   rho = 1/sqrt(mean(x^2) + eps)
//   rms_norm     y = bf16(rho*x*(1+w))           enters a product
//   norm_add     y = h + rho*x*(1+w)             the residual stream, f32
//   branch_norm  y = rho*x*(1+w)                 f32: what norm_add adds
//
// Shapes: x, h [rows, COLS] f32; w [COLS] f32; y [rows, COLS] bf16 or f32. Rows are padded to 64 elements; zeros of x, h and w there
// become zeros of y.
// A row belongs to WARPS warps and stays in their registers: one read and one write of it. Each thread adds the squares of its own
// elements in order, lanes are added by a butterfly, warps in their order: a row's bits do not depend on its neighbours.
// Bound by memory: 6 (rms_norm), 12 (norm_add) or 8 bytes an element.
// Checked against src/ops/norm/reference.rs at bf16.
//
// Constants: COLS, WARPS (of a row), ROWS (of a block). Launch: grid (ceil(rows / ROWS)), 32*WARPS*ROWS threads.

#include "elements.cuh"

#define FOURS (PADDED(COLS) / 4)
#define LANES (32 * WARPS)
#define EACH ((FOURS + LANES - 1) / LANES)

struct Row {
    float4 x[EACH];
    unsigned index;   // of the row
    unsigned first;   // this thread's first four
    float rho;
};

// Loads the thread's part of its row, and the row's rho. Every thread of the block must call it.
__device__ __forceinline__ Row read(const float* x, unsigned rows, float eps) {
    Row row;
    row.index = blockIdx.x * ROWS + threadIdx.x / LANES;
    row.first = threadIdx.x % LANES;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        unsigned at = row.first + i * LANES;
        bool inside = row.index < rows && at < FOURS;
        float4 v = inside ? load(x, (size_t)row.index * FOURS + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        squares += v.x * v.x;
        squares += v.y * v.y;
        squares += v.z * v.z;
        squares += v.w * v.w;
        row.x[i] = v;
    }
    squares = warp_sum(squares);
#if WARPS > 1
    __shared__ float parts[ROWS * WARPS];
    unsigned warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) parts[warp] = squares;
    __syncthreads();
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) squares += parts[warp / WARPS * WARPS + i];
#endif
    row.rho = 1.0f / sqrtf(squares / (float)COLS + eps);
    return row;
}

__device__ __forceinline__ float4 scaled(float4 x, float4 w, float rho) {
    return make_float4(
        rho * x.x * (1.0f + w.x), rho * x.y * (1.0f + w.y), rho * x.z * (1.0f + w.z), rho * x.w * (1.0f + w.w)
    );
}

// Writes the normed row, with h added where it is given.
template <bool ADDS, typename T>
__device__ __forceinline__ void write(T* y, const Row& row, const float* h, const float* w, unsigned rows) {
    if (row.index >= rows) return;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        unsigned at = row.first + i * LANES;
        if (at >= FOURS) return;
        size_t place = (size_t)row.index * FOURS + at;
        float4 v = scaled(row.x[i], load(w, at), row.rho);
        store(y, place, ADDS ? sum(load(h, place), v) : v);
    }
}

extern "C" __global__ void rms_norm(bf16* y, const float* x, const float* w, unsigned rows, float eps) {
    write<false>(y, read(x, rows, eps), nullptr, w, rows);
}

extern "C" __global__ void norm_add(float* y, const float* h, const float* x, const float* w, unsigned rows, float eps) {
    write<true>(y, read(x, rows, eps), h, w, rows);
}

extern "C" __global__ void branch_norm(float* y, const float* x, const float* w, unsigned rows, float eps) {
    write<false>(y, read(x, rows, eps), nullptr, w, rows);
}
