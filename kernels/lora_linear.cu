// lora_linear: one input through the frozen projections of a group, each with an optional LoRA branch, in one pass.
// gated_linear: gate and up in one block, gelu(gate)·up in its epilogue.
//
//   su_i = bf16(s·x·A_iᵀ)                                       lora_u
//   y_i  = x·W_iᵀ + su_i·B_iᵀ                                   lora_linear, PARTS projections of one x (q,k,v; k,v; one alone)
//   y    = bf16(gelu(x·Wgᵀ + su_g·Bgᵀ)·(x·Wuᵀ + su_u·Buᵀ))      gated_linear
//
// Shapes: x [rows, K] bf16; W_i [outs_i, K] bf16; A_i [rank_i, K], B_i [outs_i, rank_i], su_i [rows, rank_i] bf16; y_i [rows, outs_i]
// f32 (enters the residual stream) or bf16 (WIDE 0: enters another product). Rows are padded to 64 elements, a K-tile, with zeros; y's
// padding is written too: it is what rows of W beyond the last, taken as zeros, give.
//
// A block owns TILE_ROWS x TILE_COLS of one projection's y (of gate and up: TILE_COLS / 2 columns of both) and walks K in tiles of 64
// through STAGES stages of shared memory. The branch is more K-steps of the same sums: its tiles of su and B follow those of x and W
// through the same stages, in steps of 16, so that rank 16 costs one step. Sums are f32 in the tensor core, one chain over k ascending whatever the
// tile: a row's bits depend on neither the tile nor its neighbours.
//
// Shared memory. A row of a K-tile is 128 bytes, eight units of 16; unit u of row r lies at u ^ key(r), so that the eight rows of a matrix fragment lie in
// eight bank groups. Of W's rows a fragment takes 0,1,4,5,8,9,12,13 (its partner the others): a thread's four sums are then four consecutive columns,
// and y leaves in whole sectors (16 bytes of f32, 8 of bf16 a thread) with no exchange through shared memory.
//
// Order of blocks: row tiles are neighbours, so that one tile of W serves all rows while it is hot; W is read from memory once, x from L2.
//
// Bound by the tensor cores from about 200 rows on (2·rows FLOPs a weight byte), by reading W below.
// Checked against src/ops/lora_linear/reference.rs at bf16.
//
// Constants: K, PARTS (1 to 3; 2 if GATED), TILE_ROWS, TILE_COLS, WARPS_M, WARPS_N (warps along rows and columns), STAGES, WIDE (y is f32), GATED.
// Launch of lora_linear: grid (ceil(rows / TILE_ROWS), column tiles of all parts), 32·WARPS_M·WARPS_N threads,
// STAGES·(TILE_ROWS + TILE_COLS)·128 bytes of dynamic shared memory. Of lora_u: grid (ceil(rows / 16), ceil(largest rank / U_COLS),
// PARTS), 128 threads, U_STAGES·(16 + U_COLS)·128 bytes; U_COLS is the largest rank rounded up to 16, at most 64.

#include "gelu.cuh"
#include "tensor_core.cuh"

typedef unsigned short bf16;

#define PADDED(n) (((n) + 63) / 64 * 64)
#define K_STRIDE PADDED(K)
#define K_TILES (K_STRIDE / 64)
// Bytes of a row of a K-tile.
#define ROW 128

struct Part {
    const bf16* w;
    const bf16* b;   // null without a branch
    const bf16* su;
    void* y;
    int outs;
    int rank;        // 0 without a branch
    int first;       // its first column tile in the grid
};

struct Parts {
    Part part[PARTS];
};

// Of a tile: `rows` rows of 64 columns, `stride` bytes apart, the first `valid` of them there. A thread keeps its unit of 16 bytes and takes every THREADS/8th row; key says
// how the units of its rows are placed, which must not change over that step.
template <int ROWS, int THREADS>
__device__ __forceinline__ void copy_tile(unsigned to, const char* from, int stride, int valid, int key) {
    static_assert(THREADS % 128 == 0, "the key of a thread's rows is one");
    const int row = threadIdx.x / 8, unit = threadIdx.x % 8;
    to += row * ROW + (unit ^ key) * 16;
    from += (size_t)row * stride + unit * 16;
#pragma unroll
    for (int step = 0; step < ROWS; step += THREADS / 8) {
        if (ROWS % (THREADS / 8) != 0 && row + step >= ROWS) break;
        copy_16(to + step * ROW, from + (size_t)step * stride, row + step < valid);
    }
}

// Where units of an x row and of a W row are placed.
__device__ __forceinline__ int x_key(int row) { return row % 8; }
__device__ __forceinline__ int w_key(int row) { return row / 4 * 2 % 8 + row % 2; }

// Byte of the tile that this lane addresses for a fragment of 16 rows of x: rows lane % 16, columns from lane / 16 * 8 on.
__device__ __forceinline__ unsigned x_place(int lane) { return lane % 16 * ROW + (lane / 16 ^ lane % 8) * 16; }

// For two fragments of 8 columns of y each: rows 4·(c / 2) + c % 2 of W for c = lane % 8, plus 2 in the second.
__device__ __forceinline__ unsigned w_place(int lane) {
    return (lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2) * ROW + (lane / 8 % 2 ^ lane % 8) * 16;
}

#ifdef TILE_ROWS

#define THREADS (32 * WARPS_M * WARPS_N)
#define WARP_ROWS (TILE_ROWS / WARPS_M)
#define WARP_COLS (TILE_COLS / WARPS_N)
#define FRAGMENTS_M (WARP_ROWS / 16)
// Of 16 columns.
#define FRAGMENTS_N (WARP_COLS / 16)
#define X_BYTES (TILE_ROWS * ROW)
#define STAGE_BYTES ((TILE_ROWS + TILE_COLS) * ROW)
// Projections in one block, and the columns of each.
#define HALVES (GATED ? 2 : 1)
#define COLS (TILE_COLS / HALVES)

static_assert(WARP_ROWS % 16 == 0 && WARP_COLS % (16 * HALVES) == 0, "whole fragments");
static_assert(!GATED || PARTS == 2, "gate and up");

// Warp's columns: COLS / WARPS_N of each projection in the block.
__device__ __forceinline__ constexpr int fragment_row(int fragment) {
    return fragment / (FRAGMENTS_N / HALVES) * COLS + fragment % (FRAGMENTS_N / HALVES) * 16;
}

// Parameters have no addresses that could be computed: each is read, and one is taken.
__device__ __forceinline__ Part choose(const Parts& parts, int index) {
    Part chosen = parts.part[0];
#pragma unroll
    for (int i = 1; i < PARTS; i++) {
        const Part& part = parts.part[i];
        chosen.w = index == i ? part.w : chosen.w;
        chosen.b = index == i ? part.b : chosen.b;
        chosen.su = index == i ? part.su : chosen.su;
        chosen.y = index == i ? part.y : chosen.y;
        chosen.outs = index == i ? part.outs : chosen.outs;
        chosen.rank = index == i ? part.rank : chosen.rank;
        chosen.first = index == i ? part.first : chosen.first;
    }
    return chosen;
}

// The part that owns a column tile of the grid.
__device__ __forceinline__ int index_of(const Parts& parts, int tile) {
    int index = 0;
#pragma unroll
    for (int i = 1; i < PARTS; i++) index += tile >= parts.part[i].first;
    return index;
}

struct Sums {
    float c[FRAGMENTS_M][2 * FRAGMENTS_N][4];
};

// Adds 16 columns of k; `x` and `w` are this lane's places. `only` is the half whose columns are summed, or -1 for all.
template <int ONLY>
__device__ __forceinline__ void step(Sums& sums, unsigned x, unsigned w) {
    unsigned a[FRAGMENTS_M][4];
#pragma unroll
    for (int m = 0; m < FRAGMENTS_M; m++) load_matrices(a[m], x + m * 16 * ROW);
#pragma unroll
    for (int n = 0; n < FRAGMENTS_N; n++) {
        if (ONLY >= 0 && n / (FRAGMENTS_N / HALVES) != ONLY) continue;
        unsigned b[4];
        load_matrices(b, w + fragment_row(n) * ROW);
#pragma unroll
        for (int m = 0; m < FRAGMENTS_M; m++) {
            multiply(sums.c[m][2 * n], a[m], b[0], b[1]);
            multiply(sums.c[m][2 * n + 1], a[m], b[2], b[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) lora_linear(const bf16* __restrict__ x, const Parts parts, int rows) {
    extern __shared__ __align__(128) char storage[];
    const unsigned stages = shared_address(storage);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row_0 = blockIdx.x * TILE_ROWS;

    // This block's projection (the first of them, if GATED).
    const int index = GATED ? 0 : index_of(parts, blockIdx.y);
    const Part part = choose(parts, index), up = choose(parts, PARTS - 1);
    const int col_0 = ((int)blockIdx.y - part.first) * COLS;
    const int x_valid = rows - row_0, w_valid = part.outs - col_0;
    const int copied_row = threadIdx.x / 8;

    // Tiles of the branches follow those of K.
    const int branch_tiles[2] = {(part.rank + 63) / 64, GATED ? (up.rank + 63) / 64 : 0};
    const int tiles = K_TILES + branch_tiles[0] + branch_tiles[1];

    const char* x_from = (const char*)(x + (size_t)row_0 * K_STRIDE);
    const char* w_from = (const char*)(part.w + (size_t)col_0 * K_STRIDE);
    const char* up_from = (const char*)(up.w + (size_t)col_0 * K_STRIDE);
    auto copy_k = [&](unsigned stage, int tile) {
        copy_tile<TILE_ROWS, THREADS>(stage, x_from + tile * ROW, K_STRIDE * 2, x_valid, x_key(copied_row));
        copy_tile<COLS, THREADS>(stage + X_BYTES, w_from + tile * ROW, K_STRIDE * 2, w_valid, w_key(copied_row));
        if (GATED) {
            copy_tile<COLS, THREADS>(stage + X_BYTES + COLS * ROW, up_from + tile * ROW, K_STRIDE * 2, w_valid, w_key(copied_row));
        }
    };
    // Tile `tile` of the branches; that of up goes where up's rows of W lie.
    auto copy_branch = [&](unsigned stage, int tile) {
        const bool second = GATED && tile >= branch_tiles[0];
        if (second) tile -= branch_tiles[0];
        const int stride = ((second ? up.rank : part.rank) + 63) / 64 * ROW;
        const char* su = (const char*)(second ? up.su : part.su) + (size_t)row_0 * stride + tile * ROW;
        const char* b = (const char*)(second ? up.b : part.b) + (size_t)col_0 * stride + tile * ROW;
        copy_tile<TILE_ROWS, THREADS>(stage, su, stride, x_valid, x_key(copied_row));
        copy_tile<COLS, THREADS>(stage + X_BYTES + (second ? COLS * ROW : 0), b, stride, w_valid, w_key(copied_row));
    };
    auto copy = [&](unsigned stage, int tile) {
        if (tile < K_TILES) {
            copy_k(stage, tile);
        } else if (tile < tiles) {
            copy_branch(stage, tile - K_TILES);
        }
        commit();
    };

    Sums sums;
#pragma unroll
    for (int m = 0; m < FRAGMENTS_M; m++) {
#pragma unroll
        for (int n = 0; n < 2 * FRAGMENTS_N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums.c[m][n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ahead++) copy(stages + ahead * STAGE_BYTES, ahead);

    const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
    const unsigned x_lane = stages + warp_m * WARP_ROWS * ROW + x_place(lane);
    const unsigned w_lane = stages + X_BYTES + warp_n * (WARP_COLS / HALVES) * ROW + w_place(lane);
    unsigned read = 0, fill = (STAGES - 1) * STAGE_BYTES;
    // This tile has come for all threads, and all have done with the one whose stage is filled next.
    auto turn = [&](int tile) {
        wait<STAGES - 2>();
        __syncthreads();
        copy(stages + fill, tile + STAGES - 1);
    };
    auto next = [&] {
        read = read == (STAGES - 1) * STAGE_BYTES ? 0 : read + STAGE_BYTES;
        fill = fill == (STAGES - 1) * STAGE_BYTES ? 0 : fill + STAGE_BYTES;
    };
#pragma unroll 1
    for (int tile = 0; tile < K_TILES; tile++) {
        turn(tile);
        const unsigned x_read = x_lane + read, w_read = w_lane + read;
#pragma unroll
        for (int k = 0; k < 4; k++) step<-1>(sums, x_read ^ (k * 32), w_read ^ (k * 32));
        next();
    }
    int tile = K_TILES;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        int left = half == 0 ? part.rank : up.rank;
#pragma unroll 1
        for (; left > 0; left -= 64, tile++) {
            turn(tile);
            const unsigned x_read = x_lane + read, w_read = w_lane + read;
#pragma unroll 1
            for (int k = 0; k < 4 && k * 16 < left; k++) {
                if (!GATED) {
                    step<-1>(sums, x_read ^ (k * 32), w_read ^ (k * 32));
                } else if (half == 0) {
                    step<0>(sums, x_read ^ (k * 32), w_read ^ (k * 32));
                } else {
                    step<1>(sums, x_read ^ (k * 32), w_read ^ (k * 32));
                }
            }
            next();
        }
    }
    wait<0>();

    const int y_stride = PADDED(part.outs);
    const int column = col_0 + warp_n * (WARP_COLS / HALVES) + lane % 4 * 4;
#pragma unroll
    for (int m = 0; m < FRAGMENTS_M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row_0 + warp_m * WARP_ROWS + m * 16 + half * 8 + lane / 4;
            if (row >= rows) continue;
#pragma unroll
            for (int n = 0; n < FRAGMENTS_N / HALVES; n++) {
                const int to = column + n * 16;
                if (to >= y_stride) continue;
                const size_t place = (size_t)row * y_stride + to;
                float v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    v[i] = sums.c[m][2 * n + i / 2][2 * half + i % 2];
                    if (GATED) v[i] = gated(v[i], sums.c[m][(2 * n + FRAGMENTS_N + i / 2) % (2 * FRAGMENTS_N)][2 * half + i % 2]);
                }
                if (WIDE) {
                    *(float4*)((float*)part.y + place) = make_float4(v[0], v[1], v[2], v[3]);
                } else {
                    *(uint2*)((bf16*)part.y + place) = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
                }
            }
        }
    }
}

#else

// lora_u. A block owns 16 rows and U_COLS columns of one part's su; its four warps share K: each takes one step of 16 of every K-tile, and their
// sums are added in order at the end. Bound by reading x: 27 blocks a part at 420 rows, so that K is walked quickly rather than
// by one warp.

static_assert(U_COLS % 16 == 0 && U_COLS <= 64, "fragments of a row");
#define U_STAGE_BYTES ((16 + U_COLS) * ROW)

struct Down {
    const bf16* a;
    bf16* su;
    int rank;
    float scale;
};

struct Downs {
    Down part[PARTS];
};

extern "C" __global__ void __launch_bounds__(128) lora_u(const bf16* __restrict__ x, const Downs downs, int rows) {
    extern __shared__ __align__(128) char storage[];
    const unsigned stages = shared_address(storage);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Down down = downs.part[0];
#pragma unroll
    for (int i = 1; i < PARTS; i++) {
        const bool chosen = (int)blockIdx.z == i;
        down.a = chosen ? downs.part[i].a : down.a;
        down.su = chosen ? downs.part[i].su : down.su;
        down.rank = chosen ? downs.part[i].rank : down.rank;
        down.scale = chosen ? downs.part[i].scale : down.scale;
    }
    const int row_0 = blockIdx.x * 16, col_0 = blockIdx.y * U_COLS, stride = PADDED(down.rank);
    // Ranks differ between parts.
    if (col_0 >= stride) return;

    const char* x_from = (const char*)(x + (size_t)row_0 * K_STRIDE);
    const char* a_from = (const char*)(down.a + (size_t)col_0 * K_STRIDE);
    const int key = threadIdx.x / 8;
    auto copy = [&](unsigned stage, int tile) {
        if (tile < K_TILES) {
            copy_tile<16, 128>(stage, x_from + tile * ROW, K_STRIDE * 2, rows - row_0, x_key(key));
            copy_tile<U_COLS, 128>(stage + 16 * ROW, a_from + tile * ROW, K_STRIDE * 2, down.rank - col_0, w_key(key));
        }
        commit();
    };
#pragma unroll
    for (int ahead = 0; ahead < U_STAGES - 1; ahead++) copy(stages + ahead * U_STAGE_BYTES, ahead);

    float sums[U_COLS / 8][4];
#pragma unroll
    for (int n = 0; n < U_COLS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    }
    const unsigned x_lane = (stages + x_place(lane)) ^ (warp * 32), a_lane = (stages + 16 * ROW + w_place(lane)) ^ (warp * 32);
    unsigned read = 0, fill = (U_STAGES - 1) * U_STAGE_BYTES;
#pragma unroll 1
    for (int tile = 0; tile < K_TILES; tile++) {
        wait<U_STAGES - 2>();
        __syncthreads();
        copy(stages + fill, tile + U_STAGES - 1);
        unsigned a[4];
        load_matrices(a, x_lane + read);
#pragma unroll
        for (int n = 0; n < U_COLS / 16; n++) {
            unsigned b[4];
            load_matrices(b, a_lane + read + n * 16 * ROW);
            multiply(sums[2 * n], a, b[0], b[1]);
            multiply(sums[2 * n + 1], a, b[2], b[3]);
        }
        read = read == (U_STAGES - 1) * U_STAGE_BYTES ? 0 : read + U_STAGE_BYTES;
        fill = fill == (U_STAGES - 1) * U_STAGE_BYTES ? 0 : fill + U_STAGE_BYTES;
    }
    wait<0>();
    __syncthreads();

    // [warp][fragment of 16 columns][half][lane] sums of four columns: every thread reads back what others hold of its own place.
    float4* shared = (float4*)storage;
#pragma unroll
    for (int n = 0; n < U_COLS / 16; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float* one = sums[2 * n] + 2 * half;
            const float* two = sums[2 * n + 1] + 2 * half;
            shared[((warp * (U_COLS / 16) + n) * 2 + half) * 32 + lane] = make_float4(one[0], one[1], two[0], two[1]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int at = warp; at < U_COLS / 16 * 2; at += 4) {
        float4 sum = shared[at * 32 + lane];
#pragma unroll
        for (int other = 1; other < 4; other++) {
            const float4 v = shared[(other * (U_COLS / 8) + at) * 32 + lane];
            sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
        const int row = row_0 + at % 2 * 8 + lane / 4, col = col_0 + at / 2 * 16 + lane % 4 * 4;
        const float s = down.scale;
        if (row < rows) {
            *(uint2*)(down.su + (size_t)row * stride + col) = make_uint2(pack(s * sum.x, s * sum.y), pack(s * sum.z, s * sum.w));
        }
    }
#if U_COLS < 64
    // Padding: all ranks are at most U_COLS, so that a row is 64 columns.
    for (int at = threadIdx.x; at < 16 * (64 - U_COLS) / 4; at += 128) {
        const int row = at / ((64 - U_COLS) / 4), col = U_COLS + at % ((64 - U_COLS) / 4) * 4;
        if (row_0 + row < rows) *(uint2*)(down.su + (size_t)(row_0 + row) * 64 + col) = make_uint2(0, 0);
    }
#endif
}

#endif
