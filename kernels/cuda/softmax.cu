// Softmax over rows of f32. A row has a team of TEAM threads (a part of a warp up to several warps); a block has TEAMS
// of them. KEEP: the row waits in shared memory between its passes, else it is read again.
// ONLINE: one pass finds the maximum and the sum, rescaling the sum whenever the maximum grows; else each has its own.
// FAST: the special function unit's exponential.
constexpr int THREADS = TEAM * TEAMS, WARPS = (TEAM + 31) / 32;
constexpr int LANES = TEAM < 32 ? TEAM : 32;  // of a team in one warp
constexpr float LOWEST = -3.402823466e38f;
struct alignas(4 * VEC) Pack { float v[VEC]; };

__device__ __forceinline__ float exponential(float x) {
#if FAST
    return __expf(x);
#else
    return expf(x);
#endif
}

// The team's largest value and sum, each thread's sum being relative to its own maximum where ONLINE, else only the one
// asked for counts. `shared` has 2 floats for each warp of the team; the whole block calls this.
__device__ __forceinline__ void combine(float& largest, float& total, float* shared) {
    auto merge = [&](float other_largest, float other_total) {
        if (ONLINE) {
            const float larger = fmaxf(largest, other_largest);
            total = total * exponential(largest - larger) + other_total * exponential(other_largest - larger);
            largest = larger;
        } else {
            largest = fmaxf(largest, other_largest);
            total += other_total;
        }
    };
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        const float other_largest = __shfl_xor_sync(0xffffffffu, largest, offset);
        const float other_total = __shfl_xor_sync(0xffffffffu, total, offset);
        merge(other_largest, other_total);
    }
    if (WARPS == 1) return;
    const int warp = threadIdx.x / 32;
    __syncthreads();  // what is in `shared` from before has been read
    if (threadIdx.x % 32 == 0) {
        shared[2 * warp] = largest;
        shared[2 * warp + 1] = total;
    }
    __syncthreads();
    largest = shared[0];
    total = shared[1];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) merge(shared[2 * i], shared[2 * i + 1]);
}

extern "C" __global__ __launch_bounds__(THREADS) void softmax(const float* __restrict__ x, float* __restrict__ y,
                                                              int rows, int columns) {
    extern __shared__ __align__(16) float kept[];  // TEAMS rows
    __shared__ float shared[TEAMS][2 * WARPS];
    const int row = blockIdx.x * TEAMS + threadIdx.y, packs = columns / VEC;
    const bool real = row < rows;  // threads of rows beyond the end go along to the barriers
    const Pack* from = reinterpret_cast<const Pack*>(x + static_cast<size_t>(real ? row : 0) * columns);
    Pack* to = reinterpret_cast<Pack*>(y + static_cast<size_t>(real ? row : 0) * columns);
    Pack* mine = reinterpret_cast<Pack*>(kept + threadIdx.y * columns);

    float largest = LOWEST, total = 0.0f;
    for (int i = threadIdx.x; i < packs; i += TEAM) {
        const Pack p = from[i];
        if (KEEP) mine[i] = p;
        float top = p.v[0];
#pragma unroll
        for (int j = 1; j < VEC; ++j) top = fmaxf(top, p.v[j]);
        if (ONLINE && top > largest) total *= exponential(largest - top);
        largest = fmaxf(largest, top);
        if (ONLINE) {
#pragma unroll
            for (int j = 0; j < VEC; ++j) total += exponential(p.v[j] - largest);
        }
    }
    combine(largest, total, shared[threadIdx.y]);
    if (!ONLINE) {
        total = 0.0f;
        for (int i = threadIdx.x; i < packs; i += TEAM) {
            Pack p = KEEP ? mine[i] : from[i];
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                p.v[j] = exponential(p.v[j] - largest);
                total += p.v[j];
            }
            if (KEEP) mine[i] = p;
        }
        float unused = 0.0f;
        combine(unused, total, shared[threadIdx.y]);
    }
    const float scale = 1.0f / total;
    if (!real) return;
    for (int i = threadIdx.x; i < packs; i += TEAM) {
        Pack p = KEEP ? mine[i] : from[i];
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            p.v[j] = (KEEP && !ONLINE ? p.v[j] : exponential(p.v[j] - largest)) * scale;
        to[i] = p;
    }
}
