// 2-D convolution in f32, stride 1, no padding: X is B x C x H x W, F is O x C x R x R, Y is B x O x (H-R+1) x (W-R+1).
// Direct form: OB output channels x (WV vectors of one output row) stay in registers over the whole filter.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct Sizes {
    long batch, channels, height, width, outputs, filter;
    long rows() const { return height - filter + 1; }
    long columns() const { return width - filter + 1; }
};

static inline long smaller(long a, long b) { return a < b ? a : b; }

// OUTS channels x VECS vectors of an output row. FIXED is the filter's size where it is known to the compiler, else 0.
template <int OUTS, int VECS, int FIXED>
static inline void block(const float* __restrict x, const float* __restrict f, float* __restrict y, const Sizes& s) {
    const long filter = FIXED ? FIXED : s.filter;
    const long apart = s.channels * filter * filter, plane = s.rows() * s.columns();
    vec sum[OUTS][VECS];
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[o][v] = vec{};
    for (long c = 0; c < s.channels; ++c)
        for (long p = 0; p < filter; ++p)
            for (long q = 0; q < filter; ++q) {
                const float* in = x + (c * s.height + p) * s.width + q;
                const float* weight = f + (c * filter + p) * filter + q;
                vec pixels[VECS];
#pragma GCC unroll 4
                for (int v = 0; v < VECS; ++v) pixels[v] = *(const vec*)(in + v * LANES);
#pragma GCC unroll 8
                for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
                    for (int v = 0; v < VECS; ++v) sum[o][v] += weight[o * apart] * pixels[v];
            }
#pragma GCC unroll 8
    for (int o = 0; o < OUTS; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) *(vec*)(y + o * plane + v * LANES) = sum[o][v];
}

// Fewer columns than a vector: one column at a time, a scalar sum per channel.
template <int OUTS>
static void narrow(const float* __restrict x, const float* __restrict f, float* __restrict y, long count,
                   const Sizes& s) {
    const long apart = s.channels * s.filter * s.filter;
    for (long j = 0; j < count; ++j) {
        float sum[OUTS] = {};
        const float* weight = f;
        for (long c = 0; c < s.channels; ++c)
            for (long p = 0; p < s.filter; ++p)
                for (long q = 0; q < s.filter; ++q, ++weight)
#pragma GCC unroll 8
                    for (int o = 0; o < OUTS; ++o)
                        sum[o] += weight[o * apart] * x[(c * s.height + p) * s.width + j + q];
#pragma GCC unroll 8
        for (int o = 0; o < OUTS; ++o) y[o * s.rows() * s.columns() + j] = sum[o];
    }
}

template <int OUTS, int FIXED>
static inline void row(const float* x, const float* f, float* y, const Sizes& s) {
    const long columns = s.columns();
    long j = 0;
    for (; j + WV * LANES <= columns; j += WV * LANES) block<OUTS, WV, FIXED>(x + j, f, y + j, s);
    for (; j + LANES <= columns; j += LANES) block<OUTS, 1, FIXED>(x + j, f, y + j, s);
    if (j == columns) return;
    const long back = columns - LANES;  // the last vector steps back over columns that are done already
    if (back >= 0)
        block<OUTS, 1, FIXED>(x + back, f, y + back, s);
    else
        narrow<OUTS>(x, f, y, columns, s);
}

template <int FIXED>
static inline void task(const float* x, const float* f, float* y, long image, long o, long i, const Sizes& s) {
    x += (image * s.channels * s.height + i) * s.width;
    f += o * s.channels * s.filter * s.filter;
    y += ((image * s.outputs + o) * s.rows() + i) * s.columns();
    const long plane = s.rows() * s.columns(), filter = s.channels * s.filter * s.filter;
    const long count = smaller(OB, s.outputs - o);
    if (count == OB)
        row<OB, FIXED>(x, f, y, s);
    else
        for (long k = 0; k < count; ++k) row<1, FIXED>(x, f + k * filter, y + k * plane, s);
}

template <int FIXED>
static void convolve(const float* x, const float* f, float* y, const Sizes& s) {
    const long groups = (s.outputs + OB - 1) / OB;
    // ROWS_OUTER: each thread owns rows and reuses the pixels; otherwise it owns channels and reuses the filters.
    const long outer = ROWS_OUTER ? s.rows() : groups, inner = ROWS_OUTER ? groups : s.rows();
#pragma omp parallel for num_threads(THREADS) schedule(static) collapse(2)
    for (long image = 0; image < s.batch; ++image)
        for (long a = 0; a < outer; ++a)
            for (long b = 0; b < inner; ++b)
                task<FIXED>(x, f, y, image, (ROWS_OUTER ? b : a) * OB, ROWS_OUTER ? a : b, s);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    const float* x = (const float*)buffers[0];
    const float* f = (const float*)buffers[1];
    float* y = (float*)buffers[2];
    // SPECIAL: the usual filters get loops of known length, which the compiler can unroll.
    if (SPECIAL && s.filter == 3)
        convolve<SPECIAL ? 3 : 0>(x, f, y, s);
    else if (SPECIAL && s.filter == 5)
        convolve<SPECIAL ? 5 : 0>(x, f, y, s);
    else
        convolve<0>(x, f, y, s);
}
