// The softened gravity on each of N bodies from all of them, for BATCH systems.
// BODIES targets share each source that is read; sources lie as they came (LAYOUT 0) or by coordinate (LAYOUT 1).

static constexpr float SOFTENING = 0.01f;

// 1 / sqrt(d)^3: from the square root, from its reciprocal, or from a bit trick and Newton steps.
static inline float inverse_cube(float d) {
    if constexpr (ROOT == 0) return 1.0f / (d * __builtin_sqrtf(d));
    if constexpr (ROOT == 1) {
        const float r = 1.0f / __builtin_sqrtf(d);
        return r * r * r;
    }
    int bits;
    __builtin_memcpy(&bits, &d, sizeof bits);
    bits = 0x5f375a86 - (bits >> 1);
    float r;
    __builtin_memcpy(&r, &bits, sizeof r);
    r *= 1.5f - 0.5f * d * r * r;
    r *= 1.5f - 0.5f * d * r * r;
    r *= 1.5f - 0.5f * d * r * r;
    return r * r * r;
}

// One system: field(f, j) is entry f of body j.
struct System {
    const float* data;
    long n;
    float field(int f, long j) const { return LAYOUT ? data[f * n + j] : data[4 * j + f]; }
};

// The pull on bodies i ... i + B - 1.
template <int B>
static void targets(const System& s, long i, float* out) {
    float x[B], y[B], z[B], ax[B] = {}, ay[B] = {}, az[B] = {};
    for (int b = 0; b < B; b++) x[b] = s.field(0, i + b), y[b] = s.field(1, i + b), z[b] = s.field(2, i + b);
    const System from = s;
#define PULL(b)                                                                               \
    {                                                                                         \
        const float dx = from.field(0, j) - x[b], dy = from.field(1, j) - y[b];               \
        const float dz = from.field(2, j) - z[b];                                             \
        const float pull = from.field(3, j) * inverse_cube(dx * dx + dy * dy + dz * dz + SOFTENING); \
        ax[b] += dx * pull, ay[b] += dy * pull, az[b] += dz * pull;                           \
    }
    if constexpr (SIMD) {
#pragma omp simd reduction(+ : ax, ay, az)
        for (long j = 0; j < from.n; j++) {
            PULL(0)
            if constexpr (B > 1) PULL(1)
            if constexpr (B > 2) { PULL(2) PULL(3) }
        }
    } else {
        for (long j = 0; j < from.n; j++) {
            PULL(0)
            if constexpr (B > 1) PULL(1)
            if constexpr (B > 2) { PULL(2) PULL(3) }
        }
    }
    for (int b = 0; b < B; b++) out[3 * (i + b)] = ax[b], out[3 * (i + b) + 1] = ay[b], out[3 * (i + b) + 2] = az[b];
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* bodies = (const float*)buffers[0];
    float* out = (float*)buffers[1];
    const long batch = sizes[0], n = sizes[1], groups = (n + BODIES - 1) / BODIES;
    float* fields = LAYOUT ? (float*)__builtin_malloc(sizeof(float) * 4 * batch * n) : nullptr;
#pragma omp parallel num_threads(THREADS)
    {
        if constexpr (LAYOUT) {
#pragma omp for collapse(2) schedule(static)
            for (long b = 0; b < batch; b++)
                for (long j = 0; j < n; j++)
                    for (int f = 0; f < 4; f++) fields[(4 * b + f) * n + j] = bodies[4 * (b * n + j) + f];
        }
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long g = 0; g < groups; g++) {
                const System s = {(LAYOUT ? fields : bodies) + 4 * b * n, n};
                const long i = g * BODIES;
                if (i + BODIES <= n) targets<BODIES>(s, i, out + 3 * b * n);
                else for (long tail = i; tail < n; tail++) targets<1>(s, tail, out + 3 * b * n);
            }
    }
    __builtin_free(fields);
}
