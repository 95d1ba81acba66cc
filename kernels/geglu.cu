// geglu: the gate of the MLP, where gate and up were stored.
//
//   y = bf16(gelu(gate)*up),  gelu(a) = a/2*(1 + tanh(sqrt(2/pi)*(a + 0.044715*a^3)))
//
// Every element of gate and up, [rows, n] f32; y bf16 of the same shape. Rows are padded to 64 elements; zeros of the padding become
// zeros. Computed in f32, rounded once.
// Bound by memory: 10 bytes an element. The model's own path is the epilogue of gated_linear, which stores neither gate nor up.
// Checked against src/ops/geglu/reference.rs at bf16.
//
// Launch: grid (ceil(fours / blockDim.x)).

#include "elements.cuh"
#include "gelu.cuh"

extern "C" __global__ void geglu(bf16* y, const float* gate, const float* up, unsigned fours) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= fours) return;
    float4 g = load(gate, at), u = load(up, at);
    store(y, at, make_float4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w)));
}
