// Softmax of each row of a ROWS x COLS matrix.
// This form: three passes over a row: its largest entry, the sum of exponentials, the scaled result.

static constexpr float LOG2E = 1.44269504f;
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

static float largest(const float* x, long n) {
    float m = x[0];
    if constexpr (SIMD) {
#pragma omp simd reduction(max : m)
        for (long i = 0; i < n; i++) m = m > x[i] ? m : x[i];
    } else {
        for (long i = 0; i < n; i++) m = m > x[i] ? m : x[i];
    }
    return m;
}

// The sum of e^(x - m); with KEEP the terms stay in y.
static float total(const float* x, float* __restrict y, long n, float m) {
    float sum = 0.0f;
    if constexpr (SIMD) {
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < n; i++) {
            const float e = exponential(x[i] - m);
            if (KEEP) y[i] = e;
            sum += e;
        }
    } else {
        for (long i = 0; i < n; i++) {
            const float e = exponential(x[i] - m);
            if (KEEP) y[i] = e;
            sum += e;
        }
    }
    return sum;
}

static void scale(const float* x, float* __restrict y, long n, float m, float sum) {
    const float inverse = 1.0f / sum;
    if constexpr (SIMD) {
#pragma omp simd
        for (long i = 0; i < n; i++) {
            const float e = KEEP ? y[i] : exponential(x[i] - m);
            y[i] = DIVIDE ? e / sum : e * inverse;
        }
    } else {
        for (long i = 0; i < n; i++) {
            const float e = KEEP ? y[i] : exponential(x[i] - m);
            y[i] = DIVIDE ? e / sum : e * inverse;
        }
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
    const long rows = sizes[0], cols = sizes[1];
#pragma omp parallel for schedule(static) num_threads(THREADS)
    for (long r = 0; r < rows; r++) {
        const float* from = x + r * cols;
        float* to = y + r * cols;
        const float m = largest(from, cols);
        double sum = 0.0;
        for (long i = 0; i < cols; i += SEGMENT)
            sum += total(from + i, to + i, cols - i < SEGMENT ? cols - i : SEGMENT, m);
        scale(from, to, cols, m, (float)sum);
    }
}
