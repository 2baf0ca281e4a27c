// CUDA C++ compiled as plain C++, to check a kernel's answers where there is no GPU. One block runs at a time; its
// threads are fibres that a scheduler runs in random order from one barrier or warp operation to the next, so a missing
// barrier shows as a wrong answer. Shared memory starts as NaNs. What it stops at, with the thread's name on standard
// error and exit code 3: a barrier that some threads left out, reached elsewhere or waited at for a thread that has
// returned; a warp operation without all lanes of its mask; a launch beyond CUDA's limits or with a wrong number of
// arguments. Not modelled: blocks that wait for each other, and memory that is seen late.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block at a time: its shared memory is static, in a section of its own that is refilled before each block.
#define __shared__ static __attribute__((section("shared_memory")))
// `extern __shared__ T name[];` is turned into this by the test.
#define EMULATED_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulation::dynamic_shared)

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

enum State { READY, AT_BARRIER, IN_WARP, DONE };
struct Fibre {
    ucontext_t context;
    dim3 index;
    State state;
    int line;       // of the barrier or the warp operation it waits at
    unsigned mask;  // of the warp operation
    size_t bytes;   // of the value it gives to that
    const void* given;
    std::vector<char> taken;  // the values of its warp's 32 lanes
};

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t MAX_THREADS = 1024, MAX_SHARED = 227 << 10, MAX_STATIC_SHARED = 48 << 10;

std::vector<std::unique_ptr<Fibre>> fibres;
char* stacks = nullptr;
char* dynamic_shared = nullptr;
ucontext_t scheduler;
size_t running = 0;
std::uint64_t random_state = 0x9e3779b97f4a7c15u;
void (*body)(void*) = nullptr;
void* body_argument = nullptr;

inline std::uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

template <class T> void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random() % i]);
}

[[noreturn]] inline void stop(const char* what, const Fibre* fibre = nullptr, int number = 0) {
    std::fprintf(stderr, "emulation: ");
    std::fprintf(stderr, what, number);
    if (fibre)
        std::fprintf(stderr, "; thread (%u, %u, %u) of block (%u, %u, %u), line %d", fibre->index.x, fibre->index.y,
                     fibre->index.z, blockIdx.x, blockIdx.y, blockIdx.z, fibre->line);
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    std::_Exit(3);
}

inline Fibre& wait(State state, int line) {
    Fibre& me = *fibres[running];
    me.state = state;
    me.line = line;
    swapcontext(&me.context, &scheduler);
    return me;
}

// What all lanes of the mask give, in the order of the lanes; those outside the mask stay zero.
template <class T> const T* exchange(unsigned mask, const T& value, int line) {
    static_assert(std::is_trivially_copyable<T>::value, "a warp exchanges plain values");
    Fibre& me = *fibres[running];
    if (!(mask >> (running % 32) & 1)) stop("a lane outside the mask takes part in a warp operation", &me);
    me.mask = mask;
    me.bytes = sizeof(T);
    me.given = &value;
    wait(IN_WARP, line);
    return reinterpret_cast<const T*>(me.taken.data());
}

// Serves the warp operation that a lane waits in, if all lanes of its mask have come to it.
inline bool served(size_t lane) {
    Fibre& asking = *fibres[lane];
    const size_t first = lane / 32 * 32;
    for (size_t i = 0; i < 32; ++i) {
        if (!(asking.mask >> i & 1)) continue;
        if (first + i >= fibres.size()) stop("a mask names lane %d, which is beyond the block", &asking, int(i));
        const Fibre& other = *fibres[first + i];
        if (other.state != IN_WARP || other.mask != asking.mask || other.line != asking.line) return false;
    }
    std::vector<char> all(32 * asking.bytes, 0);
    for (size_t i = 0; i < 32; ++i)
        if (asking.mask >> i & 1) std::memcpy(&all[i * asking.bytes], fibres[first + i]->given, asking.bytes);
    for (size_t i = 0; i < 32; ++i)
        if (asking.mask >> i & 1) {
            fibres[first + i]->taken = all;
            fibres[first + i]->state = READY;
        }
    return true;
}

inline void release_barrier() {
    const Fibre* waiting = nullptr;
    const Fibre* other = nullptr;
    for (auto& fibre : fibres) {
        if (fibre->state == IN_WARP) stop("a warp operation waits for a lane that never comes", fibre.get());
        if (fibre->state == AT_BARRIER && !waiting) waiting = fibre.get();
    }
    for (auto& fibre : fibres) {
        if (fibre->state == DONE) other = fibre.get();
        if (fibre->state == AT_BARRIER && fibre->line != waiting->line)
            stop("threads wait at different barriers, another at line %d", waiting, fibre->line);
    }
    if (other) stop("a thread returned before a barrier, at line %d, that others wait at", other, waiting->line);
    for (auto& fibre : fibres) fibre->state = READY;
}

inline void enter() {
    body(body_argument);
    Fibre& me = *fibres[running];
    me.state = DONE;
    me.line = 0;
    swapcontext(&me.context, &scheduler);
}

inline void run_block() {
    if (__start_shared_memory) std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    std::vector<size_t> order;
    for (size_t i = 0; i < fibres.size(); ++i) {
        Fibre& fibre = *fibres[i];
        const unsigned plane = blockDim.x * blockDim.y;
        fibre.index = {unsigned(i % blockDim.x), unsigned(i % plane / blockDim.x), unsigned(i / plane)};
        fibre.state = READY;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = stacks + i * STACK_BYTES;
        fibre.context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&fibre.context, enter, 0);
        order.push_back(i);
    }
    for (size_t done = 0; done < fibres.size();) {
        bool moved = false;
        shuffle(order);
        for (size_t i : order) {
            if (fibres[i]->state == IN_WARP) served(i);
            if (fibres[i]->state != READY) continue;
            moved = true;
            running = i;
            threadIdx = fibres[i]->index;
            swapcontext(&scheduler, &fibres[i]->context);
            done += fibres[i]->state == DONE;
        }
        if (!moved && done < fibres.size()) release_barrier();
    }
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<P>>*>(arguments[I])...);
}

// shape: grid x, y, z, block x, y, z, bytes of dynamic shared memory.
template <class... P>
void start(void (*kernel)(P...), void** arguments, int count, const unsigned* shape) {
    if (count != int(sizeof...(P))) stop("%d arguments, the kernel has another number", nullptr, count);
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    const size_t threads = size_t(shape[3]) * shape[4] * shape[5], shared = shape[6];
    const size_t fixed = __stop_shared_memory - __start_shared_memory;
    if (threads < 1 || threads > MAX_THREADS || shape[5] > 64) stop("%d threads a block", nullptr, int(threads));
    if (!shape[0] || !shape[1] || !shape[2] || shape[1] > 65535 || shape[2] > 65535) stop("the grid is out of range");
    if (fixed > MAX_STATIC_SHARED || fixed + shared > MAX_SHARED)
        stop("%d bytes of shared memory", nullptr, int(fixed + shared));
    const size_t page = 4096, pages = (shared + page - 1) / page + 1;  // the last one cannot be touched
    const int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char* arena = static_cast<char*>(mmap(nullptr, pages * page, access, kind, -1, 0));
    mprotect(arena + (pages - 1) * page, page, PROT_NONE);
    dynamic_shared = arena + (pages - 1) * page - (shared + 15) / 16 * 16;
    stacks = static_cast<char*>(mmap(nullptr, threads * STACK_BYTES, access, kind, -1, 0));
    if (arena == MAP_FAILED || stacks == MAP_FAILED) stop("no memory for the threads of a block");
    for (size_t i = 0; i < threads; ++i) fibres.push_back(std::make_unique<Fibre>());
    auto invoke = [&] { call(kernel, arguments, std::index_sequence_for<P...>{}); };
    body = [](void* lambda) { (*static_cast<decltype(invoke)*>(lambda))(); };
    body_argument = &invoke;
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) blocks.push_back({x, y, z});
    shuffle(blocks);
    for (const dim3& block : blocks) {
        blockIdx = block;
        std::memset(dynamic_shared, 0xff, shared);
        run_block();
    }
    fibres.clear();
    munmap(stacks, threads * STACK_BYTES);
    munmap(arena, pages * page);
}

template <class T, class Both> T combined(unsigned mask, T value, int line, Both both) {
    const T* all = exchange(mask, value, line);
    T result{};
    bool first = true;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) {
            result = first ? all[i] : both(result, all[i]);
            first = false;
        }
    return result;
}

inline unsigned ballot(unsigned mask, bool predicate, int line) {
    const bool* all = exchange(mask, predicate, line);
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= unsigned(all[i]) << i;
    return result;
}

template <class T> unsigned match(unsigned mask, T value, int line) {
    const T* all = exchange(mask, value, line);
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= unsigned((mask >> i & 1) && all[i] == value) << i;
    return result;
}

// Lane `from` of the lanes of `width` that this one is among; this lane's own value where that is outside of them.
template <class T> T shuffled(unsigned mask, T value, int from, int width, bool inside, int line) {
    const int lane = int(running % 32);
    const T* all = exchange(mask, value, line);
    if (!inside) return value;
    const int source = lane / width * width + from;
    if (!(mask >> source & 1)) stop("a shuffle reads lane %d, which is not in its mask", fibres[running].get(), source);
    return all[source];
}

inline int place(int width) { return int(running % 32) % width; }

}  // namespace emulation

#define __syncthreads() ((void)emulation::wait(emulation::AT_BARRIER, __LINE__))
#define __syncwarp(...) ((void)emulation::exchange(emulation::mask_of(__VA_ARGS__), char(0), __LINE__))
namespace emulation {
inline unsigned mask_of(unsigned mask = 0xffffffffu) { return mask; }
template <class T> T shfl(int line, unsigned mask, T value, int from, int width = 32) {
    return shuffled(mask, value, from & (width - 1), width, true, line);
}
template <class T> T shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    return shuffled(mask, value, place(width) - int(delta), width, place(width) >= int(delta), line);
}
template <class T> T shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    return shuffled(mask, value, place(width) + int(delta), width, place(width) + int(delta) < width, line);
}
template <class T> T shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
    return shuffled(mask, value, place(width) ^ bits, width, (place(width) ^ bits) < width, line);
}
}  // namespace emulation
#define __shfl_sync(...) emulation::shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emulation::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emulation::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emulation::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, predicate) emulation::ballot(mask, (predicate) != 0, __LINE__)
#define __any_sync(mask, predicate) int(emulation::ballot(mask, (predicate) != 0, __LINE__) != 0)
#define __all_sync(mask, predicate) int(emulation::ballot(mask, (predicate) != 0, __LINE__) == (mask))
#define __match_any_sync(mask, value) emulation::match(mask, value, __LINE__)
#define __reduce_add_sync(mask, value) \
    emulation::combined(mask, value, __LINE__, [](auto a, auto b) { return a + b; })

template <class T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T max(T a, T b) { return a < b ? b : a; }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcs(T* address, T value) { *address = value; }

template <class T> T atomicAdd(T* address, T value) { return std::exchange(*address, T(*address + value)); }
template <class T> T atomicMax(T* address, T value) { return std::exchange(*address, max(*address, value)); }
template <class T> T atomicMin(T* address, T value) { return std::exchange(*address, min(*address, value)); }
template <class T> T atomicExch(T* address, T value) { return std::exchange(*address, value); }
template <class T> T atomicCAS(T* address, T expected, T value) {
    return std::exchange(*address, *address == expected ? value : *address);
}

using std::fabs;
using std::fmaxf;
using std::fminf;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

// What the kernels' inline PTX does (they define these themselves where __CUDACC__ is defined).

inline float half_at(unsigned pair, int i) {
    const std::uint16_t bits = pair >> (16 * i) & 0xffff;
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return float(value);
}

inline unsigned two_halves(float low, float high) {  // cvt.rn.f16x2.f32
    const _Float16 both[2] = {_Float16(low), _Float16(high)};
    unsigned result;
    std::memcpy(&result, both, 4);
    return result;
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, with PTX's layout of the fragments over the lanes.
inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Fragment {
        unsigned a[4], b[2];
    } mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const Fragment* all = emulation::exchange(0xffffffffu, mine, -1);
    const int lane = int(emulation::running % 32);
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const float left = half_at(all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2);
            const float right = half_at(all[column * 4 + k % 8 / 2].b[k / 8], k % 2);
            d[i] += left * right;
        }
    }
}
