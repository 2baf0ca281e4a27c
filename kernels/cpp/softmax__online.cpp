// Softmax of each row of a ROWS x COLS matrix.
// This form: one pass keeps LANES running maxima and sums, rescaled once per BLOCK entries; a second pass writes.

static constexpr float LOG2E = 1.44269504f, LOWEST = -3.0e38f;
static constexpr long SEGMENT = 8192;  // summed in float; longer sums are taken in double

// e^x for x <= 0: the C library's, or 2^n times a polynomial in the fraction.
static inline float exponential(float x) {
    if constexpr (!POLYNOMIAL) return __builtin_expf(x);
    float t = x * LOG2E;
    t = t < -100.0f ? -100.0f : t;  // far from denormal numbers, also after the division
    const int n = (int)(t - 0.5f);
    const float f = t - (float)n;
    float p = 0.0013276471f;
    p = p * f + 0.0096755416f;
    p = p * f + 0.0555071328f;
    p = p * f + 0.240221197f;
    p = p * f + 0.693146967f;
    p = p * f + 1.0f;
    const int bits = (n + 127) << 23;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// Entry i of the row belongs to lane i % LANES.
struct Lanes {
    float m[LANES], sum[LANES];
};

// N consecutive groups of LANES entries.
template <int N>
static inline void absorb(Lanes& lanes, const float* x) {
    float m[LANES], sum[LANES];
    for (int l = 0; l < LANES; l++) m[l] = lanes.m[l];
    for (int k = 0; k < N; k++)
        for (int l = 0; l < LANES; l++) m[l] = m[l] > x[k * LANES + l] ? m[l] : x[k * LANES + l];
#pragma omp simd
    for (int l = 0; l < LANES; l++) sum[l] = lanes.sum[l] * exponential(lanes.m[l] - m[l]);
    for (int k = 0; k < N; k++) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) sum[l] += exponential(x[k * LANES + l] - m[l]);
    }
    for (int l = 0; l < LANES; l++) lanes.m[l] = m[l], lanes.sum[l] = sum[l];
}

// The largest entry, and the sum of exponentials relative to it.
struct Total {
    float m;
    double sum;
};

static Total segment(const float* x, long n) {
    Lanes lanes;
    for (int l = 0; l < LANES; l++) lanes.m[l] = LOWEST, lanes.sum[l] = 0.0f;
    long i = 0;
    for (; i + BLOCK * LANES <= n; i += BLOCK * LANES) absorb<BLOCK>(lanes, x + i);
    for (; i + LANES <= n; i += LANES) absorb<1>(lanes, x + i);
    float m = LOWEST, sum = 0.0f;
    for (int l = 0; l < LANES && i > 0; l++) m = m > lanes.m[l] ? m : lanes.m[l];
    for (long j = i; j < n; j++) m = m > x[j] ? m : x[j];
    for (int l = 0; l < LANES && i > 0; l++) sum += lanes.sum[l] * exponential(lanes.m[l] - m);
    for (long j = i; j < n; j++) sum += exponential(x[j] - m);
    return {m, sum};
}

static void row(const float* x, float* __restrict y, long n) {
    Total all = {LOWEST, 0.0};
    for (long i = 0; i < n; i += SEGMENT) {
        const Total part = segment(x + i, n - i < SEGMENT ? n - i : SEGMENT);
        const float m = all.m > part.m ? all.m : part.m;
        all = {m, all.sum * exponential(all.m - m) + part.sum * exponential(part.m - m)};
    }
    const float m = all.m, inverse = (float)(1.0 / all.sum), log = LOGSUM ? __builtin_logf((float)all.sum) : 0.0f;
#pragma omp simd
    for (long j = 0; j < n; j++) y[j] = LOGSUM ? exponential((x[j] - m) - log) : exponential(x[j] - m) * inverse;
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
    const long rows = sizes[0], cols = sizes[1];
#pragma omp parallel for schedule(static) num_threads(THREADS)
    for (long r = 0; r < rows; r++) row(x + r * cols, y + r * cols, cols);
}
