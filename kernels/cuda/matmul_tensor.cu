// C = A @ B^T in f16 with f32 sums on the tensor cores: A is [M, K], B is [N, K], C is [M, N], all row-major, K even.
// A block of WARPS_M x WARPS_N warps computes BM x BN of C in steps of BK; a warp's part is a grid of 16 x 8 products.
// Both operands lie along K, so that a fragment is read as pairs of halves. PAD halves behind each row of a tile spread
// its rows over the banks. STAGES 2: the next tiles are on their way from memory while these are multiplied.
constexpr int WARPS = WARPS_M * WARPS_N, THREADS = 32 * WARPS;
constexpr int ROWS = BM / WARPS_M, COLUMNS = BN / WARPS_N;       // of a warp
constexpr int MMA_M = ROWS / 16, MMA_N = COLUMNS / 8;            // products of a warp
constexpr int A_LOADS = BM * BK / VEC / THREADS, B_LOADS = BN * BK / VEC / THREADS;
constexpr int PITCH = (BK + PAD) / 2;                            // pairs of a tile's row

struct alignas(2 * VEC) Pack { unsigned v[VEC / 2]; };           // VEC halves

#ifdef __CUDACC__
// Layout of the fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ unsigned two_halves(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

// VEC halves of a row; zero beyond the matrix. VEC divides K.
__device__ __forceinline__ Pack read(const unsigned short* __restrict__ x, int row, int k, int rows, int K) {
    Pack p = {};
    if (row < rows && k < K) p = *reinterpret_cast<const Pack*>(x + static_cast<size_t>(row) * K + k);
    return p;
}

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void matmul_tensor(
    const unsigned short* __restrict__ a, const unsigned short* __restrict__ b, unsigned short* __restrict__ c, int M,
    int N, int K) {
    __shared__ __align__(16) unsigned a_tile[STAGES][BM][PITCH];
    __shared__ __align__(16) unsigned b_tile[STAGES][BN][PITCH];
    const int thread = threadIdx.x, warp = thread / 32, group = thread % 32 / 4, member = thread % 4;
    const int row0 = blockIdx.y * BM, column0 = blockIdx.x * BN;
    const int warp_row = warp / WARPS_N * ROWS, warp_column = warp % WARPS_N * COLUMNS;
    float sum[MMA_M][MMA_N][4] = {};
    Pack a_next[A_LOADS], b_next[B_LOADS];

    auto fetch = [&](int k0) {
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            a_next[i] = read(a, row0 + at / BK, k0 + at % BK, M, K);
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            b_next[i] = read(b, column0 + at / BK, k0 + at % BK, N, K);
        }
    };
    auto keep = [&](int stage) {
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            *reinterpret_cast<Pack*>(&a_tile[stage][at / BK][at % BK / 2]) = a_next[i];
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            *reinterpret_cast<Pack*>(&b_tile[stage][at / BK][at % BK / 2]) = b_next[i];
        }
    };
    auto multiply = [&](int stage) {
#pragma unroll
        for (int k = 0; k < BK / 2; k += 8) {  // in pairs
            unsigned left[MMA_M][4], right[MMA_N][2];
#pragma unroll
            for (int i = 0; i < MMA_M; ++i)
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    left[i][part] = a_tile[stage][warp_row + i * 16 + group + part % 2 * 8][k + member + part / 2 * 4];
#pragma unroll
            for (int j = 0; j < MMA_N; ++j)
#pragma unroll
                for (int part = 0; part < 2; ++part)
                    right[j][part] = b_tile[stage][warp_column + j * 8 + group][k + member + part * 4];
#pragma unroll
            for (int i = 0; i < MMA_M; ++i)
#pragma unroll
                for (int j = 0; j < MMA_N; ++j) mma_m16n8k16(sum[i][j], left[i], right[j]);
        }
    };

    fetch(0);
    keep(0);
    __syncthreads();
    int stage = 0;
    for (int k0 = BK; k0 < K; k0 += BK) {
        if (STAGES == 2) {
            fetch(k0);
            multiply(stage);
            stage ^= 1;
        } else {
            multiply(stage);
            __syncthreads();
            fetch(k0);
        }
        keep(stage);
        __syncthreads();
    }
    multiply(stage);

#pragma unroll
    for (int i = 0; i < MMA_M; ++i)
#pragma unroll
        for (int j = 0; j < MMA_N; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = row0 + warp_row + i * 16 + group + half * 8;
                const int column = column0 + warp_column + j * 8 + member * 2;
                const unsigned pair = two_halves(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
                unsigned short* to = c + static_cast<size_t>(row) * N + column;
                if (row >= M) continue;
                if (column + 1 < N && N % 2 == 0) {
                    *reinterpret_cast<unsigned*>(to) = pair;
                } else {
                    if (column < N) to[0] = static_cast<unsigned short>(pair & 0xffff);
                    if (column + 1 < N) to[1] = static_cast<unsigned short>(pair >> 16);
                }
            }
}
