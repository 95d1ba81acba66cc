// Moves between buffers: conversions, sums, rows by number, copies of LoRA factors.
//
//   to_bf16, to_f32   y[i] = x[i]                                 every element of two buffers of one shape, padding included
//   add_T_S           y[i] = y[i] + x[i]                          computed in f32, rounded where y is bf16
//   gather_T          y[i, :] = x[rows[i], :]
//   scatter_T_S       y[rows[i], :] = y[rows[i], :] + x[i, :]     rows are distinct
//   factor            y[i, j] = params[offset + i*cols + j]       j < cols, zero in the padding
//
// Buffers are [rows, stride] with stride a multiple of 64, so four elements never straddle a row. Bound by memory: one read and one
// write of each element, four of them a thread (16 bytes of f32, 8 of bf16). Checked against the CPU's buffers in
// src/cuda/device_tests.rs: copies bit by bit, sums in bf16 to their one rounding.

#include "elements.cuh"

__device__ __forceinline__ unsigned here() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <typename T, typename S>
__device__ __forceinline__ void convert(T* y, const S* x, unsigned fours) {
    unsigned at = here();
    if (at < fours) store(y, at, load(x, at));
}

template <typename T, typename S>
__device__ __forceinline__ void add(T* y, const S* x, unsigned fours) {
    unsigned at = here();
    if (at < fours) store(y, at, sum(load(y, at), load(x, at)));
}

// Where the four elements `at` of row i lie in row rows[i].
__device__ __forceinline__ size_t moved(unsigned at, const unsigned* rows, unsigned stride) {
    unsigned width = stride / 4, row = at / width;
    return (size_t)rows[row] * width + at % width;
}

template <typename T>
__device__ __forceinline__ void gather(T* y, const T* x, const unsigned* rows, unsigned stride, unsigned fours) {
    unsigned at = here();
    if (at < fours) store(y, at, load(x, moved(at, rows, stride)));
}

template <typename T, typename S>
__device__ __forceinline__ void scatter(T* y, const S* x, const unsigned* rows, unsigned stride, unsigned fours) {
    unsigned at = here();
    if (at >= fours) return;
    size_t to = moved(at, rows, stride);
    store(y, to, sum(load(y, to), load(x, at)));
}

extern "C" __global__ void to_bf16(bf16* y, const float* x, unsigned fours) { convert(y, x, fours); }
extern "C" __global__ void to_f32(float* y, const bf16* x, unsigned fours) { convert(y, x, fours); }

extern "C" __global__ void add_f32_f32(float* y, const float* x, unsigned fours) { add(y, x, fours); }
extern "C" __global__ void add_f32_bf16(float* y, const bf16* x, unsigned fours) { add(y, x, fours); }
extern "C" __global__ void add_bf16_f32(bf16* y, const float* x, unsigned fours) { add(y, x, fours); }
extern "C" __global__ void add_bf16_bf16(bf16* y, const bf16* x, unsigned fours) { add(y, x, fours); }

extern "C" __global__ void gather_f32(float* y, const float* x, const unsigned* rows, unsigned stride, unsigned fours) {
    gather(y, x, rows, stride, fours);
}
extern "C" __global__ void gather_bf16(bf16* y, const bf16* x, const unsigned* rows, unsigned stride, unsigned fours) {
    gather(y, x, rows, stride, fours);
}

extern "C" __global__ void scatter_f32_f32(float* y, const float* x, const unsigned* rows, unsigned stride, unsigned fours) {
    scatter(y, x, rows, stride, fours);
}
extern "C" __global__ void scatter_f32_bf16(float* y, const bf16* x, const unsigned* rows, unsigned stride, unsigned fours) {
    scatter(y, x, rows, stride, fours);
}
extern "C" __global__ void scatter_bf16_f32(bf16* y, const float* x, const unsigned* rows, unsigned stride, unsigned fours) {
    scatter(y, x, rows, stride, fours);
}
extern "C" __global__ void scatter_bf16_bf16(bf16* y, const bf16* x, const unsigned* rows, unsigned stride, unsigned fours) {
    scatter(y, x, rows, stride, fours);
}

extern "C" __global__ void factor(
    bf16* y, const float* params, unsigned offset, unsigned rows, unsigned cols, unsigned stride, unsigned fours
) {
    unsigned at = here();
    if (at >= fours) return;
    unsigned row = at * 4 / stride, col = at * 4 % stride;
    const float* x = params + offset + (size_t)row * cols;
    float v[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) v[i] = row < rows && col + i < cols ? x[col + i] : 0.0f;
    store(y, at, make_float4(v[0], v[1], v[2], v[3]));
}
