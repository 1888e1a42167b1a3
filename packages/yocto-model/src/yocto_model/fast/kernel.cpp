// A few rows through a GPT, at the speed at which memory gives the weights.
//
// For one token a matrix is read once and used once, so what counts is how few bytes a weight takes
// and that nothing else is waited for. Weights stay rounded in memory (KIND says how) and become
// float32 in registers, where everything is computed: no activation is rounded, and a row has the
// same result, to the bit, alone or beside others. All threads walk through all layers together,
// and meet at a barrier where one needs what the others made. layers.py says what is computed.
//
// Letters as there, but that n rows (a token each) take the place of B and T.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define FLOAT32 0
#define FLOAT16 1
#define BFLOAT16 2
#define INT8 3
#define INT4 4
enum { LAYERNORM, RMSNORM };
enum { GELU, GELU_TANH, SWIGLU };

constexpr int WIDTH = 16;  // numbers in a vector; the compiler splits it where registers are shorter
constexpr int STEP = 2 * WIDTH;  // inputs are padded with zeros to a multiple of this
typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef int8_t Bytes __attribute__((vector_size(WIDTH)));

extern "C" {
struct Matrix {  // (out, in); in is padded
    const char* weight;
    const uint32_t* groups;  // int4: scale and least weight of 32 weights, bfloat16 each
    const float* scale;  // int8: of each output
    const float* bias;
    int64_t out, in;
};
struct Norm {
    const float *gain, *bias;
};
struct Layer {
    Norm ln_1, ln_2, q_norm, k_norm;
    Matrix qkv, proj, up, down;
};
struct Model {
    const Layer* layers;
    const float *tokens, *positions;  // (V, C), and (block_size, C) or null
    const float *cos, *sin;  // (block_size, D), or null
    Norm ln_f;
    int64_t n_layer, C, H, K, D, M, norm, activation;
    float eps;
};
struct Row {
    float* cache;  // the keys of its first layer, (K, capacity, D)
    int64_t next_values, next_layer, next_head;  // how many numbers further
    int64_t place;  // in the cache, which holds all before it
    int64_t first;  // what lies before this place is hidden
    int64_t position, token;
};
}

// --- numbers ---------------------------------------------------------------------------------

template <class T, class S>
static inline T read(const S* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline float sum(Vector v) {
    float t[WIDTH];
    memcpy(t, &v, sizeof v);
    for (int i = 0; i < 8; i++) t[i] += t[i + 8];
    for (int i = 0; i < 4; i++) t[i] += t[i + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

static float dot(const float* a, const float* b, int64_t n) {
    Vector parts = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) parts += read<Vector>(a + i) * read<Vector>(b + i);
    float total = sum(parts);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// e^x for x <= 0, right to 2e-7: 2^f by its Taylor series, the whole part into the exponent's bits.
static inline float exp_of(float x) {
    float t = x * 1.44269504f;
    t = t < -126 ? -126 : t;
    int32_t whole = (int32_t)(t - 0.5f);
    float f = (t - (float)whole) * 0.693147181f;
    float y = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f / 720)))));
    int32_t bits = read<int32_t>(&y) + (whole << 23);
    return read<float>(&bits);
}

static inline float sigmoid(float x) {
    float e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : 1) / (1 + e);
}

// What the compiler would make of __builtin_convertvector; gcc does it number by number.
#if defined(__AVX512F__)
static inline Ints widened(Bytes b) { return (Ints)_mm512_cvtepi8_epi32((__m128i)b); }
static inline Ints widened(Halves h) { return (Ints)_mm512_cvtepu16_epi32((__m256i)h); }
#elif defined(__AVX2__)
static inline Ints joined(__m256i low, __m256i high) {
    Ints both;
    memcpy(&both, &low, 32), memcpy((char*)&both + 32, &high, 32);
    return both;
}
static inline Ints widened(Bytes b) {
    __m128i all = (__m128i)b;
    return joined(_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)));
}
static inline Ints widened(Halves h) {
    __m256i all = (__m256i)h;
    return joined(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(all)),
                  _mm256_cvtepu16_epi32(_mm256_extracti128_si256(all, 1)));
}
#else
static inline Ints widened(Bytes b) { return __builtin_convertvector(b, Ints); }
static inline Ints widened(Halves h) { return __builtin_convertvector(h, Ints); }
#endif

static inline Vector from_bfloat16(const char* at) { return (Vector)(widened(read<Halves>(at)) << 16); }

static inline Vector from_bytes(Bytes b) { return __builtin_convertvector(widened(b), Vector); }

// Weights i to i + 32 of an output's row, i a multiple of 32.
static inline void weights(const Matrix& m, int64_t row, int64_t i, Vector& a, Vector& b) {
#if KIND == FLOAT32
    const char* at = m.weight + (row * m.in + i) * 4;
    a = read<Vector>(at), b = read<Vector>(at + 4 * WIDTH);
#elif KIND == BFLOAT16
    const char* at = m.weight + (row * m.in + i) * 2;
    a = from_bfloat16(at), b = from_bfloat16(at + 2 * WIDTH);
#elif KIND == FLOAT16
    // The bits of a half moved to where a float has them are the number times 2^-112.
    const char* at = m.weight + (row * m.in + i) * 2;
    for (Vector* v : {&a, &b}) {
        Ints bits = widened(read<Halves>(at));
        *v = (Vector)(((bits & 0x7fff) << 13) | ((bits & 0x8000) << 16)) * 0x1p112f;
        at += 2 * WIDTH;
    }
#elif KIND == INT8
    const char* at = m.weight + row * m.in + i;
    a = from_bytes(read<Bytes>(at)), b = from_bytes(read<Bytes>(at + WIDTH));
#else
    Bytes both = read<Bytes>(m.weight + (row * m.in + i) / 2);
    uint32_t group = m.groups[(row * m.in + i) / STEP];
    uint32_t high = group & 0xffff0000, low = group << 16;
    float scale = read<float>(&high), least = read<float>(&low);
    a = from_bytes(both & 15) * scale + least;
    b = from_bytes((Bytes)((both >> 4) & 15)) * scale + least;
#endif
}

// --- products --------------------------------------------------------------------------------

// R outputs of N rows: each weight is read and converted once, and is multiplied by N numbers.
template <int R, int N>
static void tile(const Matrix& m, int64_t out, const float* x, int64_t xs, float* y, int64_t ys, bool add) {
    Vector sums[R][N] = {};
    for (int64_t i = 0; i < m.in; i += STEP) {
        Vector xa[N], xb[N], a, b;
        for (int n = 0; n < N; n++) {
            xa[n] = read<Vector>(x + n * xs + i);
            xb[n] = read<Vector>(x + n * xs + i + WIDTH);
        }
        for (int r = 0; r < R; r++) {
            weights(m, out + r, i, a, b);
            for (int n = 0; n < N; n++) {
                sums[r][n] += a * xa[n];
                sums[r][n] += b * xb[n];
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) {
            // As one operation, or each instance of this template might round differently.
            float scale = m.scale ? m.scale[out + r] : 1, bias = m.bias ? m.bias[out + r] : 0;
            float value = std::fma(sum(sums[r][n]), scale, bias);
            float& target = y[n * ys + out + r];
            target = add ? target + value : value;
        }
}

template <int R>
static void some_rows(const Matrix& m, int64_t out, const float* x, int64_t xs, int n, float* y, int64_t ys, bool add) {
    for (; n >= 4; n -= 4, x += 4 * xs, y += 4 * ys) tile<R, 4>(m, out, x, xs, y, ys, add);
    if (n == 3) tile<R, 3>(m, out, x, xs, y, ys, add);
    if (n == 2) tile<R, 2>(m, out, x, xs, y, ys, add);
    if (n == 1) tile<R, 1>(m, out, x, xs, y, ys, add);
}

// y (n, out) = x (n, in) W^T + bias, or += : outputs `begin` to `end`.
static void product(const Matrix& m, int64_t begin, int64_t end, const float* x, int64_t xs, int n, float* y, int64_t ys, bool add = false) {
    for (; begin + 4 <= end; begin += 4) some_rows<4>(m, begin, x, xs, n, y, ys, add);
    for (; begin < end; begin++) some_rows<1>(m, begin, x, xs, n, y, ys, add);
}

// --- threads ---------------------------------------------------------------------------------

struct Team {
    int size;
    std::atomic<int> arrived{0}, round{0};

    void meet() {
        if (size == 1) return;
        int now = round.load();
        if (arrived.fetch_add(1) + 1 == size) {
            arrived = 0;
            round.store(now + 1);
            return;
        }
        // Whoever shares the processor with others gives it back before long.
        for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
            if (spins > 10000) std::this_thread::yield();
    }
};

extern "C" int omp_get_num_threads();
extern "C" int omp_get_thread_num();

// Calls work(team, part) on several threads.
template <class Work>
static void together(int threads, Work work) {
#ifdef _OPENMP
    Team team{threads};
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        team.size = omp_get_num_threads();
        work(team, omp_get_thread_num());
    }
#else
    Team team{1};
    work(team, 0);
#endif
}

struct Range {
    int64_t begin, end;
};

// A thread's part of `count` things, in multiples of `unit`.
static Range share(int64_t count, const Team& team, int part, int64_t unit = 4) {
    int64_t units = (count + unit - 1) / unit;
    int64_t begin = units * part / team.size * unit, end = units * (part + 1) / team.size * unit;
    return {begin, end < count ? end : count};
}

// --- the model -------------------------------------------------------------------------------

static int64_t padded(int64_t n) { return (n + STEP - 1) / STEP * STEP; }

static void normalise(int64_t kind, float eps, const Norm& norm, const float* x, int64_t n, float* y) {
    float mean = 0;
    if (kind == LAYERNORM) {
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    float scale = 1 / std::sqrt(dot(y, y, n) / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = y[i] * scale * norm.gain[i] + (norm.bias ? norm.bias[i] : 0);
}

static void activate(int64_t kind, float* x, const float* value, int64_t n) {
    if (kind == SWIGLU)
        for (int64_t i = 0; i < n; i++) x[i] = x[i] * sigmoid(x[i]) * value[i];
    else if (kind == GELU_TANH)  // (1 + tanh z) / 2 is sigmoid(2 z)
        for (int64_t i = 0; i < n; i++)
            x[i] *= sigmoid(1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
    else
        for (int64_t i = 0; i < n; i++) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.707106781f));
}

// The norm and rotation of a head of queries or keys, in place.
static void turn(const Model& m, const Norm& norm, int64_t position, float* x, float* spare) {
    if (norm.gain) normalise(RMSNORM, m.eps, norm, x, m.D, x);
    if (!m.cos) return;
    const float *cos = m.cos + position * m.D, *sin = m.sin + position * m.D;
    for (int64_t i = 0, half = m.D / 2; i < m.D; i++)
        spare[i] = x[i] * cos[i] + x[i < half ? i + half : i - half] * sin[i];
    memcpy(x, spare, m.D * sizeof(float));
}

// What a query finds among the keys and values of its row; both lie (S, D).
static void attend(const Model& m, const Row& row, const float* q, const float* keys, float* scores, float* y) {
    const float* values = keys + row.next_values;
    int64_t D = m.D, S = row.place + 1;
    float scale = 1 / std::sqrt((float)D), largest = -INFINITY, total = 0;
    for (int64_t s = row.first; s < S; s++) {
        scores[s] = dot(q, keys + s * D, D) * scale;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (int64_t s = row.first; s < S; s++) scores[s] = exp_of(scores[s] - largest);
    for (int64_t s = row.first; s < S; s++) total += scores[s];
    for (int64_t i = 0; i < D; i++) y[i] = 0;
    for (int64_t s = row.first; s < S; s++)
        for (int64_t i = 0; i < D; i++) y[i] += scores[s] * values[s * D + i];
    for (int64_t i = 0; i < D; i++) y[i] /= total;
}

extern "C" {

// n rows through all layers; x (n, C) is what the head reads. Keys and values are stored.
// Rows may follow each other in one cache: a row sees what those before it stored.
void layers(const Model* model, const Row* rows, int n, float* x, int threads) {
    const Model& m = *model;
    int64_t C = m.C, H = m.H, K = m.K, D = m.D, M = m.M, E = (H + 2 * K) * D;
    int64_t cs = padded(C), hs = padded(H * D), ms = padded(M), longest = 0;
    for (int r = 0; r < n; r++) longest = rows[r].place >= longest ? rows[r].place + 1 : longest;
    for (int64_t i = 0; i < n * C; i++) {
        const Row& row = rows[i / C];
        x[i] = m.tokens[row.token * C + i % C];
        if (m.positions) x[i] += m.positions[row.position * C + i % C];
    }
    std::vector<float> heads(n * E), found(n * hs), hidden(n * ms), values(n * M);
    together(threads, [&](Team& team, int part) {
        std::vector<float> normed(n * cs), scores(longest + D);
        float* spare = scores.data() + longest;
        for (int64_t l = 0; l < m.n_layer; l++) {
            const Layer& layer = m.layers[l];
            auto norm = [&](const Norm& ln) {  // by each thread for itself: cheaper than to meet
                for (int r = 0; r < n; r++)
                    normalise(m.norm, m.eps, ln, x + r * C, C, normed.data() + r * cs);
            };
            norm(layer.ln_1);
            Range own = share(E, team, part);
            product(layer.qkv, own.begin, own.end, normed.data(), cs, n, heads.data(), E);
            team.meet();
            own = share(n * (H + K), team, part, 1);
            for (int64_t i = own.begin; i < own.end; i++) {
                int64_t r = i / (H + K), h = i % (H + K);
                float* head = heads.data() + r * E + h * D;
                turn(m, h < H ? layer.q_norm : layer.k_norm, rows[r].position, head, spare);
                if (h < H) continue;
                const Row& row = rows[r];
                float* key = row.cache + l * row.next_layer + (h - H) * row.next_head + row.place * D;
                memcpy(key, head, D * sizeof(float));
                memcpy(key + row.next_values, head + K * D, D * sizeof(float));
            }
            team.meet();
            own = share(n * H, team, part, 1);
            for (int64_t i = own.begin; i < own.end; i++) {
                int64_t r = i / H, h = i % H;
                const Row& row = rows[r];
                const float* keys = row.cache + l * row.next_layer + h / (H / K) * row.next_head;
                attend(m, row, heads.data() + r * E + h * D, keys, scores.data(), found.data() + r * hs + h * D);
            }
            team.meet();
            own = share(C, team, part);
            product(layer.proj, own.begin, own.end, found.data(), hs, n, x, C, true);
            team.meet();
            norm(layer.ln_2);
            own = share(M, team, part);
            product(layer.up, own.begin, own.end, normed.data(), cs, n, hidden.data(), ms);
            if (m.activation == SWIGLU) {  // the second half of the outputs are the values
                product(layer.up, M + own.begin, M + own.end, normed.data(), cs, n, values.data() - M, M);
            }
            for (int r = 0; r < n; r++)
                activate(m.activation, hidden.data() + r * ms + own.begin, values.data() + r * M + own.begin, own.end - own.begin);
            team.meet();
            own = share(C, team, part);
            product(layer.down, own.begin, own.end, hidden.data(), ms, n, x, C, true);
            team.meet();
        }
        Range own = share(n, team, part, 1);
        for (int64_t r = own.begin; r < own.end; r++) {
            normalise(m.norm, m.eps, m.ln_f, x + r * C, C, normed.data());
            memcpy(x + r * C, normed.data(), C * sizeof(float));
        }
    });
}

// y (n, out) = x (n, width) W^T + bias.
void linear(const Matrix* m, const float* x, int64_t width, int n, float* y, int threads) {
    std::vector<float> rows(n * m->in);
    for (int r = 0; r < n; r++) memcpy(rows.data() + r * m->in, x + r * width, width * sizeof(float));
    together(threads, [&](Team& team, int part) {
        Range own = share(m->out, team, part);
        product(*m, own.begin, own.end, rows.data(), m->in, n, y, m->out);
    });
}
}
