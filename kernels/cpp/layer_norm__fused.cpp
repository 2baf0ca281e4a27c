// Layer norm of each row in f32: Y = (X - mean) / sqrt(variance + 1e-5) * G + B; X and Y are ROWS x COLS.
// Fused form: one read gives the sum and the sum of squares of TOGETHER rows, each in CHAINS vectors; a second read,
// which shares the gains and biases among those rows, writes the result. SHIFT takes the row's first element off first.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline float total(vec v) {
    float sum = 0.0f;
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) sum += v[l];
    return sum;
}

template <int ROWS>
static inline void rows(const float* __restrict x, const float* __restrict gain, const float* __restrict bias,
                        float* __restrict y, long cols) {
    vec sum[ROWS][CHAINS], squares[ROWS][CHAINS];
    float base[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
        base[r] = SHIFT ? x[r * cols] : 0.0f;
#pragma GCC unroll 8
        for (int u = 0; u < CHAINS; ++u) sum[r][u] = squares[r][u] = vec{};
    }
    long j = 0;
    for (; j + CHAINS * LANES <= cols; j += CHAINS * LANES)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int u = 0; u < CHAINS; ++u) {
                if (AHEAD && u * LANES % 16 == 0) __builtin_prefetch(x + (ROWS + r) * cols + j + u * LANES);
                const vec v = *(const vec*)(x + r * cols + j + u * LANES) - base[r];
                sum[r][u] += v;
                squares[r][u] += v * v;
            }
    float scale[ROWS], shift[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
        float first = 0.0f, second = 0.0f;
#pragma GCC unroll 8
        for (int u = 0; u < CHAINS; ++u) first += total(sum[r][u]), second += total(squares[r][u]);
        for (long t = j; t < cols; ++t) {
            const float v = x[r * cols + t] - base[r];
            first += v;
            second += v * v;
        }
        const float mean = first / cols, variance = second / cols - mean * mean;
        scale[r] = 1.0f / __builtin_sqrtf((variance > 0.0f ? variance : 0.0f) + 1e-5f);
        shift[r] = -(mean + base[r]) * scale[r];
    }
    long t = 0;
    for (; t + LANES <= cols; t += LANES) {
        const vec g = *(const vec*)(gain + t), b = *(const vec*)(bias + t);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
            *(vec*)(y + r * cols + t) = (*(const vec*)(x + r * cols + t) * scale[r] + shift[r]) * g + b;
    }
    for (; t < cols; ++t)
        for (int r = 0; r < ROWS; ++r) y[r * cols + t] = (x[r * cols + t] * scale[r] + shift[r]) * gain[t] + bias[t];
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
