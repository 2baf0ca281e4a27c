// 2-D convolution in f32, stride 1, no padding: X is B x C x H x W, F is O x C x R x R, Y is B x O x (H-R+1) x (W-R+1).
// Row-reuse form: RY output rows are summed together, so that every input vector that is loaded serves all of the
// output rows (of OB channels) that it touches.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct Sizes {
    long batch, channels, height, width, outputs, filter;
    long rows() const { return height - filter + 1; }
    long columns() const { return width - filter + 1; }
};

static inline long smaller(long a, long b) { return a < b ? a : b; }

// OUTS channels x ROWS output rows x VECS vectors, all in registers.
template <int OUTS, int ROWS, int VECS>
static inline void block(const float* __restrict x, const float* __restrict f, float* __restrict y, const Sizes& s) {
    const long apart = s.channels * s.filter * s.filter, columns = s.columns(), plane = s.rows() * columns;
    vec sum[OUTS][ROWS][VECS];
#pragma GCC unroll 2
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; ++v) sum[o][r][v] = vec{};
    for (long c = 0; c < s.channels; ++c)
        for (long i = 0; i < ROWS + s.filter - 1; ++i)
            for (long q = 0; q < s.filter; ++q) {
                vec pixels[VECS];
#pragma GCC unroll 4
                for (int v = 0; v < VECS; ++v)
                    pixels[v] = *(const vec*)(x + (c * s.height + i) * s.width + q + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r) {
                    const long p = i - r;  // the filter row under which input row i falls for output row r
                    if (p < 0 || p >= s.filter) continue;
                    const float* weight = f + (c * s.filter + p) * s.filter + q;
#pragma GCC unroll 2
                    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
                        for (int v = 0; v < VECS; ++v) sum[o][r][v] += weight[o * apart] * pixels[v];
                }
            }
#pragma GCC unroll 2
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; ++v) *(vec*)(y + o * plane + r * columns + v * LANES) = sum[o][r][v];
}

// Fewer columns than a vector: one column at a time, a scalar sum per channel and row.
template <int OUTS, int ROWS>
static void narrow(const float* __restrict x, const float* __restrict f, float* __restrict y, long count,
                   const Sizes& s) {
    const long apart = s.channels * s.filter * s.filter, columns = s.columns(), plane = s.rows() * columns;
    for (long j = 0; j < count; ++j) {
        float sum[OUTS][ROWS] = {};
        const float* weight = f;
        for (long c = 0; c < s.channels; ++c)
            for (long p = 0; p < s.filter; ++p)
                for (long q = 0; q < s.filter; ++q, ++weight)
#pragma GCC unroll 4
                    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                        for (int o = 0; o < OUTS; ++o)
                            sum[o][r] += weight[o * apart] * x[(c * s.height + p + r) * s.width + j + q];
#pragma GCC unroll 2
        for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) y[o * plane + r * columns + j] = sum[o][r];
    }
}

template <int OUTS, int ROWS>
static inline void band(const float* x, const float* f, float* y, const Sizes& s) {
    const long columns = s.columns();
    long j = 0;
    for (; j + WV * LANES <= columns; j += WV * LANES) block<OUTS, ROWS, WV>(x + j, f, y + j, s);
    for (; j + LANES <= columns; j += LANES) block<OUTS, ROWS, 1>(x + j, f, y + j, s);
    if (j == columns) return;
    const long back = columns - LANES;  // the last vector steps back over columns that are done already
    if (back >= 0)
        block<OUTS, ROWS, 1>(x + back, f, y + back, s);
    else
        narrow<OUTS, ROWS>(x, f, y, columns, s);
}

static void task(const float* x, const float* f, float* y, long image, long o, long i, const Sizes& s) {
    const long rows = smaller(RY, s.rows() - i), outs = smaller(OB, s.outputs - o);
    const long plane = s.rows() * s.columns(), apart = s.channels * s.filter * s.filter;
    x += (image * s.channels * s.height + i) * s.width;
    f += o * apart;
    y += (image * s.outputs + o) * plane + i * s.columns();
    if (rows == RY && outs == OB) {
        band<OB, RY>(x, f, y, s);
        return;
    }
    for (long k = 0; k < outs; ++k)
        for (long r = 0; r < rows; ++r)
            band<1, 1>(x + r * s.width, f + k * apart, y + k * plane + r * s.columns(), s);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    const float* x = (const float*)buffers[0];
    const float* f = (const float*)buffers[1];
    float* y = (float*)buffers[2];
    const long groups = (s.outputs + OB - 1) / OB, bands = (s.rows() + RY - 1) / RY;
    // BANDS_OUTER: each thread owns bands of rows and reuses the pixels; otherwise it owns channels.
    const long outer = BANDS_OUTER ? bands : groups, inner = BANDS_OUTER ? groups : bands;
#pragma omp parallel for num_threads(THREADS) schedule(static) collapse(2)
    for (long image = 0; image < s.batch; ++image)
        for (long a = 0; a < outer; ++a)
            for (long b = 0; b < inner; ++b)
                task(x, f, y, image, (BANDS_OUTER ? b : a) * OB, (BANDS_OUTER ? a : b) * RY, s);
}
