// Transposition of BATCH matrices of ROWS x COLS.
// This form: blocks of BLOCK x BLOCK are turned in registers, by interleaving halves log2(BLOCK) times.

typedef float vec __attribute__((vector_size(4 * BLOCK)));
typedef float loose __attribute__((vector_size(4 * BLOCK), aligned(4), may_alias));

// Lanes that interleave the lower, and the upper halves of two vectors.
#if BLOCK == 4
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
static constexpr int STAGES = 2;
#elif BLOCK == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
static constexpr int STAGES = 3;
#else
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
static constexpr int STAGES = 4;
#endif

static inline long lower(long a, long b) { return a < b ? a : b; }

static inline void block(const float* in, float* out, long rows, long cols) {
    vec v[BLOCK], next[BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) {
        v[i] = *(const loose*)(in + i * cols);
        if (PREFETCH) __builtin_prefetch(in + i * cols + (ORDER == 0 ? BLOCK * cols : 4 * BLOCK));
    }
#pragma GCC unroll 4
    for (int stage = 0; stage < STAGES; stage++) {
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK / 2; i++) {
            next[2 * i] = __builtin_shufflevector(v[i], v[i + BLOCK / 2], LOWER);
            next[2 * i + 1] = __builtin_shufflevector(v[i], v[i + BLOCK / 2], UPPER);
        }
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) v[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) *(loose*)(out + i * rows) = v[i];
}

static void plain(const float* in, float* out, long rows, long cols, long r0, long r1, long c0, long c1) {
    for (long c = c0; c < c1; c++)
        for (long r = r0; r < r1; r++) out[c * rows + r] = in[r * cols + c];
}

// Blocks are taken down the rows of a tile (ORDER 0) or along its columns (1); the rims entry by entry.
static void tile(const float* in, float* out, long rows, long cols, long r0, long r1, long c0, long c1) {
    const long r_end = r0 + (r1 - r0) / BLOCK * BLOCK, c_end = c0 + (c1 - c0) / BLOCK * BLOCK;
    if constexpr (ORDER == 0) {
        for (long c = c0; c < c_end; c += BLOCK)
            for (long r = r0; r < r_end; r += BLOCK) block(in + r * cols + c, out + c * rows + r, rows, cols);
    } else {
        for (long r = r0; r < r_end; r += BLOCK)
            for (long c = c0; c < c_end; c += BLOCK) block(in + r * cols + c, out + c * rows + r, rows, cols);
    }
    plain(in, out, rows, cols, r_end, r1, c0, c_end);
    plain(in, out, rows, cols, r0, r1, c_end, c1);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* in = (const float*)buffers[0];
    float* out = (float*)buffers[1];
    const long batch = sizes[0], rows = sizes[1], cols = sizes[2];
#pragma omp parallel for collapse(3) schedule(static) num_threads(THREADS)
    for (long b = 0; b < batch; b++)
        for (long r = 0; r < rows; r += TILE_R)
            for (long c = 0; c < cols; c += TILE_C)
                tile(in + b * rows * cols, out + b * rows * cols, rows, cols, r, lower(r + TILE_R, rows), c,
                     lower(c + TILE_C, cols));
}
