// Layer norm of each row in f32: Y = (X - mean) / sqrt(variance + 1e-5) * G + B; X and Y are ROWS x COLS.
// Two-pass form in plain loops: the compiler's flags decide how they become vectors, SUMS independent partial sums how
// far they can, and ONE_PASS takes the variance from a sum of squares instead of a second pass.
static inline float sum_of(const float* __restrict x, long count) {
    float part[SUMS] = {};
    long j = 0;
    for (; j + SUMS <= count; j += SUMS)
        for (int u = 0; u < SUMS; ++u) part[u] += x[j + u];
    for (; j < count; ++j) part[0] += x[j];
    float total = 0.0f;
    for (int u = 0; u < SUMS; ++u) total += part[u];
    return total;
}

static inline float squares_of(const float* __restrict x, long count, float mean) {
    float part[SUMS] = {};
    long j = 0;
    for (; j + SUMS <= count; j += SUMS)
        for (int u = 0; u < SUMS; ++u) part[u] += (x[j + u] - mean) * (x[j + u] - mean);
    for (; j < count; ++j) part[0] += (x[j] - mean) * (x[j] - mean);
    float total = 0.0f;
    for (int u = 0; u < SUMS; ++u) total += part[u];
    return total;
}

// The sums of x - base and of its square; `base`, the row's first element, keeps the squares small.
static inline void both_of(const float* __restrict x, long count, float base, float& sum, float& squares) {
    float first[SUMS] = {}, second[SUMS] = {};
    long j = 0;
    for (; j + SUMS <= count; j += SUMS)
        for (int u = 0; u < SUMS; ++u) {
            first[u] += x[j + u] - base;
            second[u] += (x[j + u] - base) * (x[j + u] - base);
        }
    for (; j < count; ++j) {
        first[0] += x[j] - base;
        second[0] += (x[j] - base) * (x[j] - base);
    }
    sum = squares = 0.0f;
    for (int u = 0; u < SUMS; ++u) sum += first[u], squares += second[u];
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long rows = sizes[0], cols = sizes[1];
    const float* gain = (const float*)buffers[1];
    const float* bias = (const float*)buffers[2];
#pragma omp parallel for num_threads(THREADS) schedule(static)
    for (long i = 0; i < rows; ++i) {
        const float* __restrict x = (const float*)buffers[0] + i * cols;
        float* __restrict y = (float*)buffers[3] + i * cols;
        float mean, variance;
        if (ONE_PASS) {
            float sum, squares;
            both_of(x, cols, x[0], sum, squares);
            const float offset = sum / cols;
            mean = x[0] + offset;
            variance = squares / cols - offset * offset;
        } else {
            mean = sum_of(x, cols) / cols;
            variance = squares_of(x, cols, mean) / cols;
        }
        const float inverse = 1.0f / __builtin_sqrtf((variance > 0.0f ? variance : 0.0f) + 1e-5f);
        for (long j = 0; j < cols; ++j) y[j] = (x[j] - mean) * inverse * gain[j] + bias[j];
    }
}
