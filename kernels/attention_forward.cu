// attention_forward: o = softmax(scale·q·kᵀ)·v over the keys that the token tree shows, with the statistics of the softmax.
//
//   z = scale·q·kᵀ on visible pairs, p = exp(z − largest) / Σ exp(z − largest), o = Σ p·v;  softmax = (largest, Σ exp(z − largest))
//
// Shapes: q, o [queries, HEADS·HEAD_DIM] bf16; k, v [key_rows, KV_HEADS·HEAD_DIM] bf16; softmax [queries, HEADS·2] f32. A row
// takes its length rounded up to 64 elements; what this kernel writes it writes with the padding, as zeros.
//
// Rows of a block. A block serves QUERIES consecutive query rows of one tree with HEADS_PER_BLOCK query heads of one kv
// head: row m of the tile is query m / HEADS_PER_BLOCK and head m % HEADS_PER_BLOCK, so that K and V are read once for all
// of them. A warp owns 16 rows over the whole of head_dim: no exchange between warps.
//
// Visibility. `spans` has the two key intervals of every query (window and images folded in). `tiles` and `key_blocks` are
// made by the host: the list of a tile names the blocks of 32 keys that at least one of its rows sees, anchored at the start
// of the prefix and of each suffix, in that order; what no row sees is never loaded. Inside a block the visible keys of a row are the
// bits of one word. A block that a row does not see leaves its sums bit for bit as they were (p = 0), therefore a
// row's bits depend on its own prefix and suffix alone, not on its neighbours in the tile or the batch.
//
// Two passes over the tile's blocks: the first, over K alone, gives a row's largest score and sum, online; the second gives p as it is rounded, normalised,
// and o. A probability that is rounded before it is known what it is divided by rounds elsewhere than in every other implementation: in a layer
// of a small model that costs three times the tolerance of 2e-3. Against one pass it costs the product q·kᵀ again, 3 tensor instructions for
// 2, and K from L2; it saves the rescaling of o.
//
// Rounding: scores, largest, sum in f32; p = exp(z − log Σ exp z) rounded to bf16 before the product with v; accumulation f32; o rounded once.
//
// Bound by shared memory: a fragment of K or V is used for 16 rows, 4 cycles of ldmatrix for 2 tensor instructions, which
// is the tensor rate of an A100. Q stays in registers (with O: 192 of 255 at head_dim 256), else it would be 5 for 4.
//
// Checked against ops/attention/reference.rs at bf16.
//
// Constants: HEAD_DIM (even), HEADS, KV_HEADS, HEADS_PER_BLOCK (divides HEADS / KV_HEADS), WARPS (1, 2, 4), STAGES (2, 3).
// Launch: grid (tiles, HEADS / HEADS_PER_BLOCK), 32·WARPS threads, STAGES·STAGE_BYTES of dynamic shared memory.

#include "tensor_core.cuh"

typedef unsigned short bf16;

#define THREADS (32 * WARPS)
#define ROWS (16 * WARPS)
#define QUERIES (ROWS / HEADS_PER_BLOCK)
// One bit of a word a key.
#define KEYS 32
#define PADDED(n) (((n) + 63) / 64 * 64)
#define Q_STRIDE PADDED(HEADS * HEAD_DIM)
#define KV_STRIDE PADDED(KV_HEADS * HEAD_DIM)
#define SOFTMAX_STRIDE PADDED(HEADS * 2)
// head_dim as the products see it.
#define DIM ((HEAD_DIM + 15) / 16 * 16)
// An odd number of 16-byte units: eight rows of one ldmatrix lie in eight different bank groups.
#define ROW_BYTES (DIM * 2 + 16)
#define KEY_BYTES (KEYS * ROW_BYTES)
#define STAGE_BYTES (2 * KEY_BYTES)
// Widest copy that every head's start is aligned to.
#define CHUNK (HEAD_DIM % 8 == 0 ? 16 : HEAD_DIM % 4 == 0 ? 8 : 4)
#define CHUNKS (HEAD_DIM * 2 / CHUNK)

static_assert(HEAD_DIM % 2 == 0, "copies are 4 bytes at least");
static_assert((HEADS / KV_HEADS) % HEADS_PER_BLOCK == 0 && HEADS_PER_BLOCK <= ROWS, "heads of a block share a kv head");
static_assert(ROWS <= 2 * KEYS, "q is staged where a K and V stage lies");
static_assert(STAGES >= 2, "a stage is filled while another is read");

struct Tile {
    int query;    // first query row
    int queries;  // 1..=QUERIES
    int block;    // first entry of key_blocks
    int prefix;   // so many blocks of the prefix, then
    int blocks;   // those of the suffixes, together so many
};

struct __align__(8) KeyBlock {
    int start;  // first key row
    int rows;   // 1..=KEYS
};

// Copies CHUNK bytes, or writes as many zeros.
__device__ __forceinline__ void copy_chunk(unsigned to, const char* from, bool valid) {
    int bytes = valid ? CHUNK : 0;
    if (CHUNK == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(CHUNK) : "memory");
    }
}

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Begins the copy of a key block's K rows, and with `values` of its V rows; what it lacks of KEYS rows becomes zeros.
__device__ __forceinline__ void copy_keys(unsigned stage, const bf16* k, const bf16* v, KeyBlock block, bool values) {
    const size_t first = (size_t)block.start * (KV_STRIDE * 2);
    if (THREADS % CHUNKS == 0) {
        // A thread keeps its chunk; from one round to the next all addresses grow by constants.
        const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS * CHUNK;
        const char* k_from = (const char*)k + (first + (row * (KV_STRIDE * 2) + chunk));
        const char* v_from = (const char*)v + (first + (row * (KV_STRIDE * 2) + chunk));
        const unsigned to = stage + (row * ROW_BYTES + chunk);
#pragma unroll
        for (int round = 0; round < KEYS; round += THREADS / CHUNKS) {
            if (KEYS % (THREADS / CHUNKS) != 0 && row + round >= KEYS) break;
            const bool valid = row + round < block.rows;
            copy_chunk(to + round * ROW_BYTES, k_from + round * (KV_STRIDE * 2), valid);
            if (values) copy_chunk(to + KEY_BYTES + round * ROW_BYTES, v_from + round * (KV_STRIDE * 2), valid);
        }
    } else {
        for (int at = threadIdx.x; at < KEYS * CHUNKS; at += THREADS) {
            const int row = at / CHUNKS, chunk = at % CHUNKS * CHUNK;
            const size_t from = first + (row * (KV_STRIDE * 2) + chunk);
            copy_chunk(stage + row * ROW_BYTES + chunk, (const char*)k + from, row < block.rows);
            if (values) copy_chunk(stage + KEY_BYTES + row * ROW_BYTES + chunk, (const char*)v + from, row < block.rows);
        }
    }
}

// The interval of keys that a row sees, counted from this lane's first key of a block that starts at 0.
struct Interval {
    int lo, hi;
};

// Of the keys that this lane holds of a block (2 of every 8), those that lie in the interval: bit 8i + j is key
// 2·(lane % 4) + 8i + j. A short block ends with its prefix or suffix: what would follow it, `rows` counted from this lane's first key, is
// another suffix's, whose rows see it in a block of its own.
__device__ __forceinline__ unsigned visible_keys(Interval interval, int start, int rows) {
    unsigned from, behind;
    // PTX shifts by 32 and more give 0, C's are undefined.
    asm("shl.b32 %0, %1, %2;" : "=r"(from) : "r"(0xffffffffu), "r"(max(interval.lo - start, 0)));
    asm("shl.b32 %0, %1, %2;" : "=r"(behind) : "r"(0xffffffffu), "r"(max(min(interval.hi - start, rows), 0)));
    return from & ~behind & 0x03030303;
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v, bf16* __restrict__ o,
    float* __restrict__ softmax, const int2* __restrict__ spans, const Tile* __restrict__ tiles,
    const KeyBlock* __restrict__ key_blocks, float scale) {
    extern __shared__ __align__(128) char storage[];
    const Tile tile = tiles[blockIdx.x];
    key_blocks += tile.block;
    const int head = blockIdx.y * HEADS_PER_BLOCK;
    const int kv_head = head / (HEADS / KV_HEADS);
    k += kv_head * HEAD_DIM;
    v += kv_head * HEAD_DIM;
    const int rows = tile.queries * HEADS_PER_BLOCK;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned stages = shared_address(storage);

    // What lies beyond head_dim is zero from the start: copies never touch it.
    if (DIM > HEAD_DIM) {
        const int words = max((DIM - HEAD_DIM) / 2, 1);
        for (int at = threadIdx.x; at < STAGES * 2 * KEYS * words; at += THREADS) {
            *(unsigned*)(storage + at / words * ROW_BYTES + HEAD_DIM * 2 + at % words * 4) = 0;
        }
    }

    // Q into the last stage, from where it goes to registers before that stage is filled.
    const unsigned q_stage = stages + (STAGES - 1) * STAGE_BYTES;
#pragma unroll
    for (int base = 0; base < ROWS * CHUNKS; base += THREADS) {
        const int at = base + threadIdx.x;
        if (ROWS * CHUNKS % THREADS != 0 && at >= ROWS * CHUNKS) break;
        const int of_tile = at / CHUNKS, chunk = at % CHUNKS;
        const size_t query = tile.query + of_tile / HEADS_PER_BLOCK;
        const size_t from = query * Q_STRIDE + (head + of_tile % HEADS_PER_BLOCK) * HEAD_DIM;
        copy_chunk(q_stage + of_tile * ROW_BYTES + chunk * CHUNK, (const char*)(q + from) + chunk * CHUNK, of_tile < rows);
    }
    commit();
    // Turns of both passes: K of every block, then K and V of every block.
    const int turns = 2 * tile.blocks;
    auto block_of = [&](int turn) { return key_blocks[turn < tile.blocks ? turn : turn - tile.blocks]; };
    auto copy = [&](int turn, unsigned stage) {
        if (turn < turns) copy_keys(stage, k, v, block_of(turn), turn >= tile.blocks);
        commit();
    };
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ahead++) copy(ahead, stages + ahead * STAGE_BYTES);

    // Of each lane: rows lane / 4 and lane / 4 + 8 of its warp, keys 2·(lane % 4) and the next of every 8.
    const int column = lane % 4 * 2;
    const int row = warp * 16 + lane / 4;
    Interval interval[2];
    // which: 0 the prefix, 1 the own suffix. Rows beyond the tile see nothing.
    auto look_at = [&](int which) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int2 keys = make_int2(0, 0);
            if (row + 8 * half < rows) keys = spans[2 * (tile.query + (row + 8 * half) / HEADS_PER_BLOCK) + which];
            interval[half] = {keys.x - column, keys.y - column};
        }
    };

    wait<STAGES - 1>();
    __syncthreads();
    unsigned q_fragments[DIM / 16][4];
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        load_matrices(q_fragments[step], q_stage + (warp * 16 + lane % 16) * ROW_BYTES + lane / 16 * 16 + step * 32);
    }

    // Factor of a score inside exp2.
    const float factor = scale * 1.4426950408889634f;
    const float minus_infinity = __int_as_float(0xff800000);
    // Of rows that have seen nothing: finite, so that the difference of two such is 0, and below every score.
    float largest[2] = {-1e30f, -1e30f};
    // Over this lane's keys; the four lanes of a row are added after the first pass.
    float sum[2] = {0.0f, 0.0f};
    // Of K a lane addresses row lane % 8 (+ 8 in the upper half warp); of V row lane % 16.
    const unsigned k_lane = stages + (lane % 8 + lane / 16 * 8) * ROW_BYTES + lane / 8 % 2 * 16;
    const unsigned v_lane = stages + KEY_BYTES + lane % 16 * ROW_BYTES + lane / 16 * 16;
    unsigned read = 0, fill = (STAGES - 1) * STAGE_BYTES;

    KeyBlock next = key_blocks[0];
    unsigned seen[2];
    // Turns to a block: it has come for all threads, and all have done with the one whose stage is filled next. Says whether a row of this warp sees it.
    auto turn_to = [&](int turn) {
        const int start = next.start, keys = next.rows - column;
        if (turn + 1 < turns) next = block_of(turn + 1);
        wait<STAGES - 2>();
        __syncthreads();
        copy(turn + STAGES - 1, stages + fill);
        const int at = turn < tile.blocks ? turn : turn - tile.blocks;
        if (at == 0) look_at(0);
        if (at == tile.prefix) look_at(1);
#pragma unroll
        for (int half = 0; half < 2; half++) seen[half] = visible_keys(interval[half], start, keys);
        return __any_sync(0xffffffffu, seen[0] | seen[1]);
    };
    auto turn_away = [&] {
        read = read == (STAGES - 1) * STAGE_BYTES ? 0 : read + STAGE_BYTES;
        fill = fill == (STAGES - 1) * STAGE_BYTES ? 0 : fill + STAGE_BYTES;
    };
    // q·kᵀ, and minus infinity where a row does not see the key.
    auto scores = [&](float (&score)[KEYS / 8][4]) {
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
#pragma unroll
            for (int key16 = 0; key16 < KEYS / 16; key16++) {
                unsigned b[4];
                load_matrices(b, k_lane + read + key16 * 16 * ROW_BYTES + step * 32);
                if (step == 0) {
                    multiply_first(score[2 * key16], q_fragments[step], b[0], b[1]);
                    multiply_first(score[2 * key16 + 1], q_fragments[step], b[2], b[3]);
                } else {
                    multiply(score[2 * key16], q_fragments[step], b[0], b[1]);
                    multiply(score[2 * key16 + 1], q_fragments[step], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int key8 = 0; key8 < KEYS / 8; key8++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& z = score[key8][i];
                z = seen[i / 2] & (1u << (key8 * 8 + i % 2)) ? z : minus_infinity;
            }
        }
    };

    for (int turn = 0; turn < tile.blocks; turn++) {
        if (turn_to(turn)) {
            float score[KEYS / 8][4];
            scores(score);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float now = largest[half];
#pragma unroll
                for (int key8 = 0; key8 < KEYS / 8; key8++) {
                    now = fmaxf(now, fmaxf(score[key8][2 * half], score[key8][2 * half + 1]));
                }
                now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
                now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
                sum[half] *= exp2_approximate((largest[half] - now) * factor);
                largest[half] = now;
                const float shift = -now * factor;
#pragma unroll
                for (int key8 = 0; key8 < KEYS / 8; key8++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) sum[half] += exp2_approximate(fmaf(score[key8][2 * half + i], factor, shift));
                }
            }
        }
        turn_away();
    }
    // Of p = 2^(factor·z + shift): −log2 Σ exp z.
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        shift[half] = -fmaf(largest[half], factor, log2f(sum[half]));
    }
    float out[DIM / 8][4];
#pragma unroll
    for (int tile8 = 0; tile8 < DIM / 8; tile8++) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[tile8][i] = 0.0f;
    }
    for (int turn = tile.blocks; turn < turns; turn++) {
        if (turn_to(turn)) {
            float score[KEYS / 8][4];
            scores(score);
            unsigned p[KEYS / 8][2];
#pragma unroll
            for (int key8 = 0; key8 < KEYS / 8; key8++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float p0 = exp2_approximate(fmaf(score[key8][2 * half], factor, shift[half]));
                    const float p1 = exp2_approximate(fmaf(score[key8][2 * half + 1], factor, shift[half]));
                    p[key8][half] = pack(p0, p1);
                }
            }
#pragma unroll
            for (int key16 = 0; key16 < KEYS / 16; key16++) {
                const unsigned a[4] = {p[2 * key16][0], p[2 * key16][1], p[2 * key16 + 1][0], p[2 * key16 + 1][1]};
#pragma unroll
                for (int tile16 = 0; tile16 < DIM / 16; tile16++) {
                    unsigned b[4];
                    load_transposed(b, v_lane + read + key16 * 16 * ROW_BYTES + tile16 * 32);
                    multiply(out[2 * tile16], a, b[0], b[1]);
                    multiply(out[2 * tile16 + 1], a, b[2], b[3]);
                }
            }
        }
        turn_away();
    }

    // All warps have done with K and V: their place takes o, so that rows leave in whole sectors.
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int of_tile = row + 8 * half;
        if (of_tile < rows && lane % 4 == 0) {
            const size_t query = tile.query + of_tile / HEADS_PER_BLOCK;
            float2* statistics = (float2*)(softmax + query * SOFTMAX_STRIDE + 2 * (head + of_tile % HEADS_PER_BLOCK));
            *statistics = make_float2(largest[half] * scale, sum[half]);
        }
    }
    char* own = storage + warp * 16 * ROW_BYTES;
#pragma unroll
    for (int tile8 = 0; tile8 < DIM / 8; tile8++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            *(unsigned*)(own + (lane / 4 + 8 * half) * ROW_BYTES + tile8 * 16 + column * 2) =
                pack(out[tile8][2 * half], out[tile8][2 * half + 1]);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int at = lane; at < 16 * CHUNKS; at += 32) {
        const int of_warp = at / CHUNKS, chunk = at % CHUNKS, of_tile = warp * 16 + of_warp;
        if (of_tile < rows) {
            const size_t query = tile.query + of_tile / HEADS_PER_BLOCK;
            const size_t to = query * Q_STRIDE + (head + of_tile % HEADS_PER_BLOCK) * HEAD_DIM;
            const char* from = own + of_warp * ROW_BYTES + chunk * CHUNK;
            char* target = (char*)(o + to) + chunk * CHUNK;
            if (CHUNK == 16) {
                *(uint4*)target = *(const uint4*)from;
            } else if (CHUNK == 8) {
                *(uint2*)target = *(const uint2*)from;
            } else {
                *(unsigned*)target = *(const unsigned*)from;
            }
        }
    }
    // Padding of both outputs, by the block of the last heads.
    if (head + HEADS_PER_BLOCK == HEADS) {
        const int o_words = (Q_STRIDE - HEADS * HEAD_DIM) / 2, statistics = SOFTMAX_STRIDE - HEADS * 2;
        for (int at = threadIdx.x; at < tile.queries * o_words; at += THREADS) {
            const size_t query = tile.query + at / o_words;
            *(unsigned*)(o + query * Q_STRIDE + HEADS * HEAD_DIM + at % o_words * 2) = 0;
        }
        for (int at = threadIdx.x; at < tile.queries * statistics; at += THREADS) {
            const size_t query = tile.query + at / statistics;
            softmax[query * SOFTMAX_STRIDE + HEADS * 2 + at % statistics] = 0.0f;
        }
    }
}
