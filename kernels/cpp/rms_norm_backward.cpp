// Backward of RMS normalisation, y = x * r * w with r = 1 / sqrt(mean(x^2) + eps): dx per row, dw over all rows.
// dw is gathered while the rows go by, in a private copy per thread (WEIGHTS 0), or by a pass of its own (WEIGHTS 1).

static constexpr float EPSILON = 1e-2f;
static constexpr long SEGMENT = 4096;   // summed in float; longer sums are taken in double
static constexpr long STRIPE = 512;     // columns of dw that one thread gathers at a time

struct Sums {
    float squares, dot;
};

struct Data {
    const float *x, *dy, *w;
    float *dx, *r;  // r: one entry per row
    long rows, cols;
};

#define TWO_SUMS                                                  \
    {                                                             \
        const float g = dy[i] * w[i];                             \
        if (KEEP) dx[i] = g;                                      \
        squares += x[i] * x[i], dot += g * x[i];                  \
    }

static Sums sums(const float* x, const float* dy, const float* w, float* __restrict dx, long n) {
    float squares = 0.0f, dot = 0.0f;
    if constexpr (SIMD) {
#pragma omp simd reduction(+ : squares, dot)
        for (long i = 0; i < n; i++) TWO_SUMS
    } else {
        for (long i = 0; i < n; i++) TWO_SUMS
    }
    return {squares, dot};
}

static void write(const float* x, const float* dy, const float* w, float* __restrict dx, long n, float r, float c) {
    if constexpr (SIMD) {
#pragma omp simd
        for (long i = 0; i < n; i++) dx[i] = r * ((KEEP ? dx[i] : dy[i] * w[i]) - x[i] * c);
    } else {
        for (long i = 0; i < n; i++) dx[i] = r * ((KEEP ? dx[i] : dy[i] * w[i]) - x[i] * c);
    }
}

static void row(const Data& d, long i) {
    const float *x = d.x + i * d.cols, *dy = d.dy + i * d.cols;
    float* dx = d.dx + i * d.cols;
    double squares = 0.0, dot = 0.0;
    for (long j = 0; j < d.cols; j += SEGMENT) {
        const Sums s = sums(x + j, dy + j, d.w + j, dx + j, d.cols - j < SEGMENT ? d.cols - j : SEGMENT);
        squares += s.squares, dot += s.dot;
    }
    const float r = 1.0f / __builtin_sqrtf((float)(squares / d.cols) + EPSILON);
    d.r[i] = r;
    write(x, dy, d.w, dx, d.cols, r, (float)(dot / d.cols) * r * r);
}

// Adds columns [from, to) of N rows from i on.
template <int N>
static void gather(const Data& d, long i, long from, long to, float* __restrict dw) {
    const float *x = d.x + i * d.cols, *dy = d.dy + i * d.cols, *r = d.r + i;
    const long c = d.cols;
    const float r0 = r[0], r1 = r[N > 1 ? 1 : 0], r2 = r[N > 2 ? 2 : 0], r3 = r[N > 2 ? 3 : 0];
#define ADD                                                       \
    {                                                             \
        float sum = dy[j] * x[j] * r0;                            \
        if (N > 1) sum += dy[c + j] * x[c + j] * r1;              \
        if (N > 2) sum += dy[2 * c + j] * x[2 * c + j] * r2;      \
        if (N > 2) sum += dy[3 * c + j] * x[3 * c + j] * r3;      \
        dw[j] += sum;                                             \
    }
    if constexpr (SIMD) {
#pragma omp simd
        for (long j = from; j < to; j++) ADD
    } else {
        for (long j = from; j < to; j++) ADD
    }
}

static void gather_rows(const Data& d, long first, long last, long from, long to, float* dw) {
    long i = first;
    for (; i + TOGETHER <= last; i += TOGETHER) gather<TOGETHER>(d, i, from, to, dw);
    for (; i < last; i++) gather<1>(d, i, from, to, dw);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long rows = sizes[0], cols = sizes[1];
    float* dw = (float*)buffers[4];
    float* r = (float*)__builtin_malloc(sizeof(float) * rows);
    float* partial = WEIGHTS == 0 ? (float*)__builtin_calloc(cols * THREADS, sizeof(float)) : nullptr;
    const Data d = {(const float*)buffers[0], (const float*)buffers[1], (const float*)buffers[2], (float*)buffers[3], r,
                    rows, cols};
#pragma omp parallel num_threads(THREADS)
    if constexpr (WEIGHTS == 0) {
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) {
            const long first = rows * t / THREADS, last = rows * (t + 1) / THREADS;
            for (long i = first; i < last; i += TOGETHER) {
                const long end = i + TOGETHER < last ? i + TOGETHER : last;
                for (long k = i; k < end; k++) row(d, k);
                gather_rows(d, i, end, 0, cols, partial + t * cols);
            }
        }
#pragma omp for schedule(static)
        for (long j = 0; j < cols; j++) {
            float sum = 0.0f;
            for (int t = 0; t < THREADS; t++) sum += partial[t * cols + j];
            dw[j] = sum;
        }
    } else {
#pragma omp for schedule(static)
        for (long i = 0; i < rows; i++) row(d, i);
#pragma omp for schedule(static)
        for (long j = 0; j < cols; j += STRIPE) {
            const long end = j + STRIPE < cols ? j + STRIPE : cols;
            for (long k = j; k < end; k++) dw[k] = 0.0f;
            gather_rows(d, 0, rows, j, end, dw);
        }
    }
    __builtin_free(partial);
    __builtin_free(r);
}
