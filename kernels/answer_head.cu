// answer_head: logits of answer rows against chosen rows of the tied head, or all of them.
// vocabulary: softmax statistics of answer rows over the whole head; no row of logits is stored.
//
//   z[i, c] = n_i·E[id_c]                                   answer_head: id_c = ids[c], or c without ids
//   per stripe s of COLS vocabulary columns:                vocabulary
//     largest[s, i] = max z[i, v],  sum[s, i] = Σ exp(z[i, v] − largest[s, i])
//     cross[s, p]   = Σ exp(z[i, v] − largest[s, i])·(z[k, v] − c_k)    for pair p = (i, k)
//
// Shapes: n [rows, HIDDEN] f32 (the final norm of answer rows); E [vocab, HIDDEN] bf16, or f32 (WIDE 1) where the checkpoint has it so; z
// [rows, columns] f32, padding written; largest, sum [stripes, rows], cross [stripes, pairs] f32, dense; the host adds stripes in order.
// Nothing is rounded to bf16: the products are FMAs, one chain an element over k ascending, so that both kernels and any selection of columns
// give an element the same bits.
//
// A block owns ROWS rows and COLS = 128 columns; a thread 8 rows and ROWS / 8 columns, 128 / (ROWS / 8) apart. E is staged as f32, 32 columns of k at a
// time, columns of a k neighbours in memory (stride 129: what 32 lanes store lies in 32 banks); n likewise, so that one read serves a warp.
//
// Bound by reading E up to about 16 rows (one read for all of them), by f32 FMAs beyond.
// Checked against src/ops/answer_head/reference.rs and src/ops/vocabulary/reference.rs at bf16.
//
// Constants: HIDDEN, ROWS (8, 16, 32, 64), WIDE. Launch: grid (ceil(columns / 128), ceil(rows / ROWS) or slices), 128 threads; vocabulary with
// 4·max(32·(129 + ROWS), 129·ROWS) bytes of dynamic shared memory: first the tiles, then a stripe's logits.

#define PADDED(n) (((n) + 63) / 64 * 64)
#define STRIDE PADDED(HIDDEN)
#define COLS 128
#define THREADS 128
#define K_TILE 32
#define APART (COLS + 1)
// Columns of a thread, and the distance between them.
#define EACH (ROWS / 8)
#define LANES (COLS / EACH)
#if WIDE
typedef float Stored;
#else
typedef unsigned short Stored;
#endif
// Elements in 16 bytes.
#define UNIT (16 / (int)sizeof(Stored))

// Staged tiles of E and n, [k][column] and [k][row].
struct Staged {
    float e[K_TILE * APART];
    float n[K_TILE * ROWS];
};

// The 16 bytes as f32.
__device__ __forceinline__ void widen(float (&v)[UNIT], uint4 bits) {
    const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if WIDE
        v[i] = __uint_as_float(word[i]);
#else
        v[2 * i] = __uint_as_float(word[i] << 16);
        v[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
#endif
    }
}

// z of this thread's 8 rows and EACH columns. `row` gives the row of n for a row of the block, or -1; `id` that of E for a column, or -1.
template <typename RowOf, typename IdOf>
__device__ __forceinline__ void products(float (&z)[8][EACH], Staged& staged, const float* n, const Stored* e, RowOf row, IdOf id) {
    // Copies of a K-tile: of E 16 bytes at a time, K_TILE / UNIT of them a row.
    constexpr int units = K_TILE / UNIT, copies = COLS * units / THREADS;
    const int unit = threadIdx.x % units, column = threadIdx.x / units;
    const Stored* from[copies];
    bool there[copies];
#pragma unroll
    for (int i = 0; i < copies; i++) {
        const int of = id(column + i * (THREADS / units));
        there[i] = of >= 0;
        from[i] = e + (size_t)(there[i] ? of : 0) * STRIDE + unit * UNIT;
    }
    // Of n one k a thread and every fourth row: rows of a warp lie in a row of the staged tile.
    constexpr int n_copies = ROWS * K_TILE / THREADS;
    const int n_k = threadIdx.x % K_TILE, n_row = threadIdx.x / K_TILE;
#pragma unroll
    for (int r = 0; r < 8; r++) {
#pragma unroll
        for (int c = 0; c < EACH; c++) z[r][c] = 0.0f;
    }
    const int row_0 = threadIdx.x / LANES * 8, lane = threadIdx.x % LANES;
#pragma unroll 1
    for (int k_0 = 0; k_0 < STRIDE; k_0 += K_TILE) {
        uint4 bits[copies];
#pragma unroll
        for (int i = 0; i < copies; i++) {
            bits[i] = there[i] ? __ldg((const uint4*)(from[i] + k_0)) : make_uint4(0, 0, 0, 0);
        }
        float of_n[n_copies];
#pragma unroll
        for (int i = 0; i < n_copies; i++) {
            const int of = row(n_row + i * (THREADS / K_TILE));
            of_n[i] = of >= 0 ? n[(size_t)of * STRIDE + k_0 + n_k] : 0.0f;
        }
        // All have done with the tile before.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < copies; i++) {
            float v[UNIT];
            widen(v, bits[i]);
#pragma unroll
            for (int j = 0; j < UNIT; j++) staged.e[(unit * UNIT + j) * APART + column + i * (THREADS / units)] = v[j];
        }
#pragma unroll
        for (int i = 0; i < n_copies; i++) staged.n[n_k * ROWS + n_row + i * (THREADS / K_TILE)] = of_n[i];
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < K_TILE; k++) {
            const float4 low = *(const float4*)(staged.n + k * ROWS + row_0);
            const float4 high = *(const float4*)(staged.n + k * ROWS + row_0 + 4);
            const float rows[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                const float of_e = staged.e[k * APART + lane + c * LANES];
#pragma unroll
                for (int r = 0; r < 8; r++) z[r][c] = fmaf(rows[r], of_e, z[r][c]);
            }
        }
    }
}

// ids may be null: the columns are the vocabulary in order.
extern "C" __global__ void __launch_bounds__(THREADS) answer_head(
    float* __restrict__ y, const float* __restrict__ n, const Stored* __restrict__ e, const unsigned* __restrict__ ids, int rows, int columns) {
    __shared__ __align__(16) Staged staged;
    const int row_0 = blockIdx.y * ROWS, col_0 = blockIdx.x * COLS;
    float z[8][EACH];
    products(
        z, staged, n, e, [&](int row) { return row_0 + row < rows ? row_0 + row : -1; },
        [&](int column) {
            column += col_0;
            if (column >= columns) return -1;
            return ids ? (int)ids[column] : column;
        });
    const int stride = PADDED(columns);
#pragma unroll
    for (int r = 0; r < 8; r++) {
        const int row = row_0 + threadIdx.x / LANES * 8 + r;
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            const int column = col_0 + threadIdx.x % LANES + c * LANES;
            if (column < stride) y[(size_t)row * stride + column] = z[r][c];
        }
    }
}

// What a slice of the grid (blockIdx.y) is asked: at most ROWS rows of n, and pairs of them.
struct Slice {
    int rows;   // first entry of row_of
    int count;  // of rows
    int pairs;  // first entry of pair_of
    int pair_count;
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

// row_of: rows of n; pair_of: places (i, k) among a slice's rows; centre: c of every entry of row_of.
extern "C" __global__ void __launch_bounds__(THREADS) vocabulary(
    float* __restrict__ largest, float* __restrict__ sum, float* __restrict__ cross, const float* __restrict__ n, const Stored* __restrict__ e,
    const Slice* __restrict__ slices, const int* __restrict__ row_of, const int2* __restrict__ pair_of, const float* __restrict__ centre,
    int vocab, int all_rows, int all_pairs) {
    __shared__ float most[ROWS];
    extern __shared__ __align__(16) char storage[];
    Staged& staged = *(Staged*)storage;
    // [ROWS][APART], where the tiles were.
    float* logits = (float*)storage;
    const Slice slice = slices[blockIdx.y];
    const int col_0 = blockIdx.x * COLS, columns = min(COLS, vocab - col_0);
    float z[8][EACH];
    products(
        z, staged, n, e, [&](int row) { return row < slice.count ? row_of[slice.rows + row] : -1; },
        [&](int column) { return column < columns ? col_0 + column : -1; });
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 8; r++) {
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            logits[(threadIdx.x / LANES * 8 + r) * APART + threadIdx.x % LANES + c * LANES] = z[r][c];
        }
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int row = warp; row < slice.count; row += THREADS / 32) {
        const float* of = logits + row * APART;
        float top = __int_as_float(0xff800000);
#pragma unroll
        for (int i = 0; i < COLS / 32; i++) {
            if (lane + i * 32 < columns) top = fmaxf(top, of[lane + i * 32]);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < COLS / 32; i++) {
            if (lane + i * 32 < columns) total += expf(of[lane + i * 32] - top);
        }
        total = warp_sum(total);
        if (lane == 0) {
            most[row] = top;
            largest[(size_t)blockIdx.x * all_rows + slice.rows + row] = top;
            sum[(size_t)blockIdx.x * all_rows + slice.rows + row] = total;
        }
    }
    __syncthreads();
    for (int pair = warp; pair < slice.pair_count; pair += THREADS / 32) {
        const int2 of = pair_of[slice.pairs + pair];
        const float top = most[of.x], c = centre[slice.rows + of.y];
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < COLS / 32; i++) {
            const int column = lane + i * 32;
            if (column < columns) total += expf(logits[of.x * APART + column] - top) * (logits[of.y * APART + column] - c);
        }
        total = warp_sum(total);
        if (lane == 0) cross[(size_t)blockIdx.x * all_pairs + slice.pairs + pair] = total;
    }
}
