// embed: rows of the embedding table times the embedding scale.
//
//   h[t, :] = E[ids[t], :] * scale
//
// Shapes: h [rows, COLS] f32; E [vocabulary, COLS] bf16; ids [rows] < vocabulary. Rows are padded to 64 elements; E's padding is zero and
// so becomes h's. One rounding, that of the product.
// Bound by memory: 2 bytes read and 4 written an element; four elements a thread, a warp reads 256 consecutive bytes.
// Checked against src/ops/embed/reference.rs at bf16.
//
// Constants: COLS. Launch: grid (groups of blockDim.x fours of a row, rows).

#include "elements.cuh"

#define FOURS (PADDED(COLS) / 4)

extern "C" __global__ void embed(float* h, const bf16* table, const unsigned* ids, float scale) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= FOURS) return;
    float4 v = load(table, (size_t)ids[blockIdx.y] * FOURS + at);
    store(h, (size_t)blockIdx.y * FOURS + at, make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale));
}
