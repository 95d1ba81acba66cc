// Four elements at a time, f32 or bf16, and sums over a warp: what kernels that are bound by memory share.
//
// Rows are a multiple of 64 elements apart, so four elements never straddle a row, and 16 bytes of f32 or 8 of bf16 are aligned.

#pragma once
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;

// Elements from one row of n columns to the next.
#define PADDED(n) (((n) + 63) / 64 * 64)

struct alignas(8) Four {
    bf16 a, b, c, d;
};

__device__ __forceinline__ float4 load(const float* x, size_t at) { return reinterpret_cast<const float4*>(x)[at]; }

__device__ __forceinline__ float4 load(const bf16* x, size_t at) {
    Four four = reinterpret_cast<const Four*>(x)[at];
    return make_float4(__bfloat162float(four.a), __bfloat162float(four.b), __bfloat162float(four.c), __bfloat162float(four.d));
}

__device__ __forceinline__ void store(float* y, size_t at, float4 v) { reinterpret_cast<float4*>(y)[at] = v; }

__device__ __forceinline__ void store(bf16* y, size_t at, float4 v) {
    Four four = {__float2bfloat16(v.x), __float2bfloat16(v.y), __float2bfloat16(v.z), __float2bfloat16(v.w)};
    reinterpret_cast<Four*>(y)[at] = four;
}

__device__ __forceinline__ float4 sum(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// The sum over the 32 lanes, in every lane the same bits: partners add the same two numbers.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
