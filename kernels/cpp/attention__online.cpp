// Attention per head in f32: O = softmax(Q K^T / sqrt(D)) V, Q and O are H x SQ x D, K and V are H x SK x D.
// Online form: keys stream past once, KB at a time; each of QB query rows keeps its running maximum, its sum and its
// weighted output, which are rescaled when the maximum grows (LAZY: only then; otherwise at every step).
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// e^x for x <= 0 by 2^n * polynomial (the coefficients are those of Cephes' expf), or lane by lane through libm.
static inline vec exponential(vec x) {
    if (LIBM) {
#pragma GCC unroll 16
        for (int l = 0; l < LANES; ++l) x[l] = __builtin_expf(x[l]);
        return x;
    }
    x = x > -87.0f ? x : vec{} - 87.0f;
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

static inline float exponential_of(float x) {
    if (LIBM) return __builtin_expf(x);
    return exponential(vec{} + x)[0];
}

struct Row {
    float most, total;
};

// KEYS dot products of one query along D.
template <int KEYS>
static inline void dots(const float* __restrict q, const float* __restrict k, float* __restrict scores, long dim,
                        float scale) {
    vec sum[KEYS];
#pragma GCC unroll 8
    for (int s = 0; s < KEYS; ++s) sum[s] = vec{};
    long d = 0;
    for (; d + LANES <= dim; d += LANES)
#pragma GCC unroll 8
        for (int s = 0; s < KEYS; ++s) sum[s] += *(const vec*)(q + d) * *(const vec*)(k + s * dim + d);
#pragma GCC unroll 8
    for (int s = 0; s < KEYS; ++s) {
        float dot = 0.0f;
#pragma GCC unroll 16
        for (int l = 0; l < LANES; ++l) dot += sum[s][l];
        for (long rest = d; rest < dim; ++rest) dot += q[rest] * k[s * dim + rest];
        scores[s] = dot * scale;
    }
}

static inline void rescale(float* __restrict out, float factor, long dim) {
    long d = 0;
    for (; d + LANES <= dim; d += LANES) *(vec*)(out + d) = *(const vec*)(out + d) * factor;
    for (; d < dim; ++d) out[d] *= factor;
}

// One query meets KEYS keys: the state and the weighted output move on.
template <int KEYS>
static inline void step(const float* __restrict q, const float* __restrict k, const float* __restrict v,
                        float* __restrict out, Row& row, long dim, float scale) {
    float p[KEYS], most = row.most;
    dots<KEYS>(q, k, p, dim, scale);
#pragma GCC unroll 8
    for (int s = 0; s < KEYS; ++s) most = p[s] > most ? p[s] : most;
    if (!LAZY || most > row.most) {
        const float factor = exponential_of(row.most - most);
        row.total *= factor;
        row.most = most;
        rescale(out, factor, dim);
    }
#pragma GCC unroll 8
    for (int s = 0; s < KEYS; ++s) {
        p[s] = exponential_of(p[s] - most);
        row.total += p[s];
    }
    long d = 0;
    for (; d + LANES <= dim; d += LANES) {
        vec sum = *(const vec*)(out + d);
#pragma GCC unroll 8
        for (int s = 0; s < KEYS; ++s) sum += p[s] * *(const vec*)(v + s * dim + d);
        *(vec*)(out + d) = sum;
    }
    for (; d < dim; ++d)
        for (int s = 0; s < KEYS; ++s) out[d] += p[s] * v[s * dim + d];
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long heads = sizes[0], queries = sizes[1], keys = sizes[2], dim = sizes[3];
    const float* all_q = (const float*)buffers[0];
    const float* all_k = (const float*)buffers[1];
    const float* all_v = (const float*)buffers[2];
    float* all_out = (float*)buffers[3];
    const float scale = 1.0f / __builtin_sqrtf((float)dim);
#pragma omp parallel for num_threads(THREADS) schedule(static) collapse(2)
    for (long h = 0; h < heads; ++h)
        for (long i = 0; i < queries; i += QB) {
            const long count = i + QB <= queries ? QB : queries - i;
            const float* q = all_q + (h * queries + i) * dim;
            const float* k = all_k + h * keys * dim;
            const float* v = all_v + h * keys * dim;
            float* out = all_out + (h * queries + i) * dim;
            Row row[QB];
            for (long r = 0; r < QB; ++r) row[r] = {-1e30f, 0.0f};
            __builtin_memset(out, 0, count * dim * 4);
            long j = 0;
            for (; j + KB <= keys; j += KB)
                for (long r = 0; r < count; ++r)
                    step<KB>(q + r * dim, k + j * dim, v + j * dim, out + r * dim, row[r], dim, scale);
            for (; j < keys; ++j)
                for (long r = 0; r < count; ++r)
                    step<1>(q + r * dim, k + j * dim, v + j * dim, out + r * dim, row[r], dim, scale);
            for (long r = 0; r < count; ++r) rescale(out + r * dim, 1.0f / row[r].total, dim);
        }
}
