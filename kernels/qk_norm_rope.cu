// qk_norm_rope: RMSNorm of every head of q or k, then rotary position embedding.
//
//   n = rho*x*(1+w), rho = 1/sqrt(mean(x^2) + eps) over the head
//   y[j] = n[j]*cos[j] - n[j+half]*sin[j],  y[j+half] = n[j+half]*cos[j] + n[j]*sin[j],  j < half = HEAD_DIM/2
//
// Shapes: x, y [rows, HEADS*HEAD_DIM] bf16; w [HEAD_DIM] f32; rope [rows, HEAD_DIM] f32, cosines then sines. Rows are padded to 64
// elements; the warp of the last head zeroes y's padding. Computed in f32, rounded once.
// A warp has one head of one row in registers: one read and one write. Bound by memory: 4 bytes an element, and the tables, which
// the heads of a row share through the cache.
// Checked against src/ops/qk_norm_rope/reference.rs at bf16.
//
// Constants: HEADS, HEAD_DIM (even). Launch: grid (ceil(rows*HEADS / warps of a block)), 32 threads a warp.

#include "elements.cuh"

#define STRIDE PADDED(HEADS * HEAD_DIM)
#define ROPE_STRIDE PADDED(HEAD_DIM)
#define HALF (HEAD_DIM / 2)
// Elements of each half that a thread moves at once: four where every head's halves are aligned to them.
#define WIDE (HALF % 4 == 0 ? 4 : 1)
#define EACH ((HALF / WIDE + 31) / 32)

// WIDE elements from `at`, a multiple of WIDE.
__device__ __forceinline__ void take(float (&v)[WIDE], const bf16* x, unsigned at) {
#if HALF % 4 == 0
    float4 four = load(x + at, 0);
    v[0] = four.x; v[1] = four.y; v[2] = four.z; v[3] = four.w;
#else
    v[0] = __bfloat162float(x[at]);
#endif
}

__device__ __forceinline__ void take(float (&v)[WIDE], const float* x, unsigned at) {
#if HALF % 4 == 0
    float4 four = load(x + at, 0);
    v[0] = four.x; v[1] = four.y; v[2] = four.z; v[3] = four.w;
#else
    v[0] = x[at];
#endif
}

__device__ __forceinline__ void put(bf16* y, unsigned at, const float (&v)[WIDE]) {
#if HALF % 4 == 0
    store(y + at, 0, make_float4(v[0], v[1], v[2], v[3]));
#else
    y[at] = __float2bfloat16(v[0]);
#endif
}

extern "C" __global__ void qk_norm_rope(
    bf16* y, const bf16* x, const float* w, const float* rope, unsigned rows, float eps
) {
    unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    unsigned row = warp / HEADS, head = warp % HEADS;
    if (row >= rows) return;
    x += (size_t)row * STRIDE + head * HEAD_DIM;
    y += (size_t)row * STRIDE + head * HEAD_DIM;
    rope += (size_t)row * ROPE_STRIDE;

    float low[EACH][WIDE], high[EACH][WIDE];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        unsigned at = (lane + 32 * i) * WIDE;
        if (at >= HALF) continue;
        take(low[i], x, at);
        take(high[i], x, at + HALF);
#pragma unroll
        for (int j = 0; j < WIDE; j++) squares += low[i][j] * low[i][j];
#pragma unroll
        for (int j = 0; j < WIDE; j++) squares += high[i][j] * high[i][j];
    }
    float rho = 1.0f / sqrtf(warp_sum(squares) / (float)HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        unsigned at = (lane + 32 * i) * WIDE;
        if (at >= HALF) continue;
        float w_low[WIDE], w_high[WIDE], cosine[WIDE], sine[WIDE];
        take(w_low, w, at);
        take(w_high, w, at + HALF);
        take(cosine, rope, at);
        take(sine, rope, at + HALF);
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            float a = rho * low[i][j] * (1.0f + w_low[j]), b = rho * high[i][j] * (1.0f + w_high[j]);
            low[i][j] = a * cosine[j] - b * sine[j];
            high[i][j] = b * cosine[j] + a * sine[j];
        }
        put(y, at, low[i]);
        put(y, at + HALF, high[i]);
    }
    if (head == HEADS - 1) {
        for (unsigned at = HEADS * HEAD_DIM + lane; at < STRIDE; at += 32) y[at - head * HEAD_DIM] = __float2bfloat16(0.0f);
    }
}
