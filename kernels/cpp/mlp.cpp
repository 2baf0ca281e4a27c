// Y = gelu(X @ W1) @ W2 in f32: X is T x D, W1 is D x H, W2 is H x O; gelu in its tanh form.
// Fused: a tile of TT tokens makes HB hidden values at a time, which are activated while near and at once added into the
// tile's outputs; both products keep MR x (NV vectors) in registers. The hidden layer never exists as a whole.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// e^x by 2^n * polynomial (the coefficients are those of Cephes' expf), or lane by lane through libm.
static inline vec exponential(vec x) {
    if (LIBM) {
#pragma GCC unroll 16
        for (int l = 0; l < LANES; ++l) x[l] = __builtin_expf(x[l]);
        return x;
    }
    x = x > -87.0f ? x : vec{} - 87.0f;  // held within what f32 can express
    x = x < 87.0f ? x : vec{} + 87.0f;
    const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits of the sum hold the rounded exponent
    const vec n = shifted - 12582912.0f;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

static inline long smaller(long a, long b) { return a < b ? a : b; }

template <int ROWS, int VECS>
static inline void block(const float* __restrict a, long lda, const float* __restrict b, long ldb, float* __restrict c,
                         long ldc, long depth, bool fresh) {
    vec sum[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[r][v] = fresh ? vec{} : *(const vec*)(c + r * ldc + v * LANES);
    for (long k = 0; k < depth; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) {
            const vec right = *(const vec*)(b + k * ldb + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[r][v] += a[r * lda + k] * right;
        }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) *(vec*)(c + r * ldc + v * LANES) = sum[r][v];
}

template <int ROWS>
static inline void narrow(const float* __restrict a, long lda, const float* __restrict b, long ldb, float* __restrict c,
                          long ldc, long depth, long width, bool fresh) {
    for (long j = 0; j < width; ++j) {
        float sum[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[r] = fresh ? 0.0f : c[r * ldc + j];
        for (long k = 0; k < depth; ++k)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[r] += a[r * lda + k] * b[k * ldb + j];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) c[r * ldc + j] = sum[r];
    }
}

template <int ROWS>
static inline void rows(const float* a, long lda, const float* b, long ldb, float* c, long ldc, long depth, long width,
                        bool fresh) {
    long j = 0;
    for (; j + NV * LANES <= width; j += NV * LANES) block<ROWS, NV>(a, lda, b + j, ldb, c + j, ldc, depth, fresh);
    for (; j + LANES <= width; j += LANES) block<ROWS, 1>(a, lda, b + j, ldb, c + j, ldc, depth, fresh);
    narrow<ROWS>(a, lda, b + j, ldb, c + j, ldc, depth, width - j, fresh);
}

// c (count x width) = or += a (count x depth) @ b (depth x width).
static void product(const float* a, long lda, const float* b, long ldb, float* c, long ldc, long count, long depth,
                    long width, bool fresh) {
    long i = 0;
    for (; i + MR <= count; i += MR) rows<MR>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, depth, width, fresh);
    for (; i < count; ++i) rows<1>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, depth, width, fresh);
}

// gelu(x) = x * sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3), in place, over whole vectors: the tile has room.
static void gelu(float* values, long count) {
    for (long j = 0; j < count; j += LANES) {
        vec x = *(const vec*)(values + j);
        const vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
        *(vec*)(values + j) = x / (1.0f + exponential(-2.0f * u));
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long tokens = sizes[0], depth = sizes[1], hidden = sizes[2], outputs = sizes[3];
    const float* x = (const float*)buffers[0];
    const float* w1 = (const float*)buffers[1];
    const float* w2 = (const float*)buffers[2];
    float* y = (float*)buffers[3];
#pragma omp parallel num_threads(THREADS)
    {
        float* tile = (float*)__builtin_calloc(TT * HB, 4);
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t += TT) {
            const long count = smaller(TT, tokens - t);
            for (long h = 0; h < hidden; h += HB) {
                const long width = smaller(HB, hidden - h);
                product(x + t * depth, depth, w1 + h, hidden, tile, HB, count, depth, width, true);
                for (long i = 0; i < count; ++i) gelu(tile + i * HB, width);
                product(tile, HB, w2 + h * outputs, outputs, y + t * outputs, outputs, count, width, outputs, h == 0);
            }
        }
        __builtin_free(tile);
    }
}
