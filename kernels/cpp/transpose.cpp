// Transposition of BATCH matrices of ROWS x COLS.
// This form: plain loops over tiles; ORDER says whether the innermost loop writes (0) or reads (1) along a line.

static inline long lower(long a, long b) { return a < b ? a : b; }

// Rows [r0, r1) and columns [c0, c1) of one matrix.
static void tile(const float* in, float* __restrict out, long rows, long cols, long r0, long r1, long c0, long c1) {
    if constexpr (ORDER == 0) {
        for (long c = c0; c < c1; c++) {
            if constexpr (SIMD) {
#pragma omp simd
                for (long r = r0; r < r1; r++) out[c * rows + r] = in[r * cols + c];
            } else {
                for (long r = r0; r < r1; r++) out[c * rows + r] = in[r * cols + c];
            }
        }
    } else {
        for (long r = r0; r < r1; r++) {
            if constexpr (SIMD) {
#pragma omp simd
                for (long c = c0; c < c1; c++) out[c * rows + r] = in[r * cols + c];
            } else {
                for (long c = c0; c < c1; c++) out[c * rows + r] = in[r * cols + c];
            }
        }
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* in = (const float*)buffers[0];
    float* out = (float*)buffers[1];
    const long batch = sizes[0], rows = sizes[1], cols = sizes[2];
    const long height = lower(TILE_R, rows), width = lower(TILE_C, cols);
#pragma omp parallel for collapse(3) schedule(static) num_threads(THREADS)
    for (long b = 0; b < batch; b++)
        for (long r = 0; r < rows; r += height)
            for (long c = 0; c < cols; c += width)
                tile(in + b * rows * cols, out + b * rows * cols, rows, cols, r, lower(r + height, rows), c,
                     lower(c + width, cols));
}
