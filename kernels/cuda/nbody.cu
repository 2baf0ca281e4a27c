// Gravity of n bodies on each other: out[i] = sum over j of m_j * (p_j - p_i) / (|p_j - p_i|^2 + SOFTENING^2)^1.5, with
// x, y, z and m of a body side by side. A thread has PER_THREAD bodies, THREADS apart, and goes over all bodies.
// SHARED: THREADS bodies at a time are brought to shared memory, where all threads of a block read the same one at a
// time. SPLIT blocks share the bodies that pull; they add up through atomic additions to a cleared output.
// RSQRT: the special function unit's reciprocal root, else a division by a root.
constexpr float SOFTENING_SQUARED = 1e-2f;

extern "C" __global__ __launch_bounds__(THREADS) void clear(float* out, int count) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < count) out[i] = 0.0f;
}

__device__ __forceinline__ void pull(const float4& me, const float4& other, float (&sum)[3]) {
    const float dx = other.x - me.x, dy = other.y - me.y, dz = other.z - me.z;
    const float squared = dx * dx + dy * dy + dz * dz + SOFTENING_SQUARED;
#if RSQRT
    const float inverse = rsqrtf(squared);
#else
    const float inverse = 1.0f / sqrtf(squared);
#endif
    const float force = other.w * inverse * inverse * inverse;
    sum[0] += force * dx;
    sum[1] += force * dy;
    sum[2] += force * dz;
}

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void nbody(const float4* __restrict__ bodies,
                                                                        float* __restrict__ out, int n) {
    const int part = (n + SPLIT - 1) / SPLIT;
    const int begin = blockIdx.y * part, end = min(begin + part, n);
    float4 mine[PER_THREAD];
    float sum[PER_THREAD][3] = {};
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int i = (blockIdx.x * PER_THREAD + k) * THREADS + threadIdx.x;
        mine[k] = bodies[min(i, n - 1)];
    }
#if SHARED
    __shared__ float4 tile[THREADS];
    for (int first = begin; first < end; first += THREADS) {
        const int i = first + threadIdx.x;
        __syncthreads();
        tile[threadIdx.x] = i < end ? bodies[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);  // without mass
        __syncthreads();
#pragma unroll UNROLL
        for (int j = 0; j < THREADS; ++j) {
            const float4 other = tile[j];
#pragma unroll
            for (int k = 0; k < PER_THREAD; ++k) pull(mine[k], other, sum[k]);
        }
    }
#else
#pragma unroll UNROLL
    for (int j = begin; j < end; ++j) {
        const float4 other = __ldg(bodies + j);
#pragma unroll
        for (int k = 0; k < PER_THREAD; ++k) pull(mine[k], other, sum[k]);
    }
#endif
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int i = (blockIdx.x * PER_THREAD + k) * THREADS + threadIdx.x;
        if (i >= n) continue;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            if (SPLIT > 1)
                atomicAdd(out + 3 * i + axis, sum[k][axis]);
            else
                out[3 * i + axis] = sum[k][axis];
        }
    }
}
