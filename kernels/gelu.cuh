// gelu(a) = a/2*(1 + tanh(sqrt(2/pi)*(a + 0.044715*a^3))), of a gate, times up.

#pragma once

__device__ __forceinline__ float gated(float gate, float up) {
    float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
}
