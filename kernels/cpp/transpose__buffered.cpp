// Transposition of BATCH matrices of ROWS x COLS.
// This form: each tile goes through a local buffer with padded lines, turned on the way in (TURN 0) or out (TURN 1).

// Lines of the buffer: of the output when turned on the way in, of the input when turned on the way out.
static constexpr long LINE = (TURN ? TILE_C : TILE_R) + PAD;

static inline long lower(long a, long b) { return a < b ? a : b; }

static inline void copy(float* __restrict to, const float* from, long n) {
    if constexpr (LIBRARY) {
        __builtin_memcpy(to, from, n * sizeof(float));
    } else {
#pragma omp simd
        for (long i = 0; i < n; i++) to[i] = from[i];
    }
}

// `height` rows and `width` columns from `in` on; lines of the matrix are `cols` apart, of its transpose `rows`.
static void tile(const float* in, float* out, long rows, long cols, long height, long width) {
    alignas(64) float buffer[(TURN ? TILE_R : TILE_C) * LINE];
    if constexpr (TURN) {
        for (long r = 0; r < height; r++) copy(buffer + r * LINE, in + r * cols, width);
        for (long c = 0; c < width; c++)
            for (long r = 0; r < height; r++) out[c * rows + r] = buffer[r * LINE + c];
    } else {
        for (long r = 0; r < height; r++)
            for (long c = 0; c < width; c++) buffer[c * LINE + r] = in[r * cols + c];
        for (long c = 0; c < width; c++) copy(out + c * rows, buffer + c * LINE, height);
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* in = (const float*)buffers[0];
    float* out = (float*)buffers[1];
    const long batch = sizes[0], rows = sizes[1], cols = sizes[2];
#pragma omp parallel for collapse(3) schedule(static) num_threads(THREADS)
    for (long b = 0; b < batch; b++)
        for (long r = 0; r < rows; r += TILE_R)
            for (long c = 0; c < cols; c += TILE_C) {
                const long matrix = b * rows * cols;
                tile(in + matrix + r * cols + c, out + matrix + c * rows + r, rows, cols, lower(TILE_R, rows - r),
                     lower(TILE_C, cols - c));
            }
}
