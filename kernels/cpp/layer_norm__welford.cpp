// Layer norm of each row in f32: Y = (X - mean) / sqrt(variance + 1e-5) * G + B; X and Y are ROWS x COLS.
// Welford form: one pass updates a mean and a sum of squared deviations in every lane of CHAINS vectors for each of TOGETHER
// rows, then the lanes are merged; RECIPROCAL shares one scalar division per step, otherwise every lane divides.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct Moments {
    float count, mean, spread;
};

// Chan's merge of two samples' moments.
static inline Moments merge(Moments a, float count, float mean, float spread) {
    if (count == 0.0f) return a;
    const float all = a.count + count, delta = mean - a.mean;
    return {all, a.mean + delta * (count / all), a.spread + spread + delta * delta * (a.count * count / all)};
}

template <int ROWS>
static inline void rows(const float* __restrict x, const float* __restrict gain, const float* __restrict bias,
                        float* __restrict y, long cols) {
    vec mean[ROWS][CHAINS], spread[ROWS][CHAINS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < CHAINS; ++u) mean[r][u] = spread[r][u] = vec{};
    float steps = 0.0f;
    long j = 0;
    for (; j + CHAINS * LANES <= cols; j += CHAINS * LANES) {
        steps += 1.0f;
        const float share = 1.0f / steps;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int u = 0; u < CHAINS; ++u) {
                const vec v = *(const vec*)(x + r * cols + j + u * LANES);
                const vec delta = v - mean[r][u];
                mean[r][u] += RECIPROCAL ? delta * share : delta / (vec{} + steps);
                spread[r][u] += delta * (v - mean[r][u]);
            }
    }
    for (int r = 0; r < ROWS; ++r) {
        Moments all = {0.0f, 0.0f, 0.0f};
        for (int u = 0; u < CHAINS; ++u)
            for (int l = 0; l < LANES; ++l) all = merge(all, steps, mean[r][u][l], spread[r][u][l]);
        for (long t = j; t < cols; ++t) all = merge(all, 1.0f, x[r * cols + t], 0.0f);
        const float inverse = 1.0f / __builtin_sqrtf(all.spread / cols + 1e-5f);
        const float* __restrict from = x + r * cols;
        float* __restrict to = y + r * cols;
        long t = 0;
        for (; t + LANES <= cols; t += LANES)
            *(vec*)(to + t) =
                (*(const vec*)(from + t) - all.mean) * inverse * *(const vec*)(gain + t) + *(const vec*)(bias + t);
        for (; t < cols; ++t) to[t] = (from[t] - all.mean) * inverse * gain[t] + bias[t];
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long count = sizes[0], cols = sizes[1];
    const float* x = (const float*)buffers[0];
    const float* gain = (const float*)buffers[1];
    const float* bias = (const float*)buffers[2];
    float* y = (float*)buffers[3];
#pragma omp parallel for num_threads(THREADS) schedule(static)
    for (long i = 0; i < count; i += TOGETHER) {
        if (i + TOGETHER <= count)
            rows<TOGETHER>(x + i * cols, gain, bias, y + i * cols, cols);
        else
            for (long r = i; r < count; ++r) rows<1>(x + r * cols, gain, bias, y + r * cols, cols);
    }
}
