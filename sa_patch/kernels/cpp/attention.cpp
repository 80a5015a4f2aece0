// Attention of tiles of queries to listed keys on a CPU. Belongs to the `cpp` kernel.
//
// A tile is a list of queries and a list of keys, both ascending by position. Per kv head its keys (transposed) and
// values are copied once, in float32. Rows (a query under one query head) are computed ROWS at a time and only up to
// the last key that precedes one of them, so that hardly anything of the future is computed. The scores of a step are
// held at once: nothing is merged but what is asked for in parts.

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 12;
#endif
constexpr int STEP = 2 * LANES;  // keys, or components of a value, at a time: ROWS x 2 sums stay in registers
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t bf16;

static inline Floats load(const float* from) { Floats x; std::memcpy(&x, from, sizeof x); return x; }
static inline Ints load(const int32_t* from) { Ints x; std::memcpy(&x, from, sizeof x); return x; }
static inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
static inline Floats all(float x) { return x - Floats{}; }
static inline Ints all(int32_t x) { return x - Ints{}; }
static inline Floats pick(Ints mask, Floats a, Floats b) { return (Floats)(((Ints)a & mask) | ((Ints)b & ~mask)); }

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) { const uint32_t bits = (uint32_t)x << 16; float f; std::memcpy(&f, &bits, 4); return f; }
static inline Floats widened(const float* from) { return load(from); }
static inline Floats widened(const bf16* from) {
    typedef bf16 Halves __attribute__((vector_size(2 * LANES)));
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return (Floats)(__builtin_convertvector(x, Ints) << 16);
}
static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, bf16* to) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = std::isnan(x) ? 0x7fc0 : (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 2^x for x <= 0: 2^n times a polynomial on [-1/2, 1/2], to 2e-7 of the value; 0 below 2^-126, NaN for NaN.
static inline Floats exp2v(Floats x) {
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, the lowest bits
    const Floats shifted = x + magic, f = x - (shifted - magic);
    Floats p = all(1.5353362e-4f);
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184370e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314720e-1f;
    p = p * f + 1.0f;
    const Floats found = (Floats)((Ints)p + (((Ints)shifted - (Ints)magic) << 23));
    return pick(x == x, pick(x < all(-126.0f), Floats{}, found), x);
}

struct Strided { void* data; int64_t batch, head, token; };  // strides in elements; the last dimension is contiguous

struct Call {
    Strided query, key, value, output;
    float* lse;  // [batch, heads, queries], or null
    int64_t batch, heads, kv_heads, head_dim, first, length, threads, is_bf16, output_is_bf16;
    float scaling;
    float* lse_of(int64_t batch, int64_t head, int32_t row) const {
        return lse + (batch * heads + head) * (length - first) + row - first;
    }
};

// The log-sum-exp of scores in powers of 2: their largest one, and the sum of the weights beside it.
static inline float natural(float top, float total) { return total == 0 ? -INFINITY : (top + std::log2(total)) * LN_2; }

// Which keys of a tile a query sees, from its own position on: the first `fixed` of the list, and those whose ranks
// differ from its own by less than `width` and that lie `apart` tokens back at least.
struct Shown {
    int64_t fixed, width, apart;
    int64_t ring;         // how many ranks there are, if they form a ring; else 0
    const int32_t* rank;  // of every token; null: its position
    int32_t of(int32_t token) const { return rank ? rank[token] : token; }
};

struct Scratch {
    std::vector<int32_t> rows, keys, ranks, positions, fixed;
    std::vector<float> k, v, q, scores;
};

// to[d * STEP + j] = component d of key j, for up to LANES keys.
template <typename T>
static inline void transpose(const T* base, const int32_t* keys, int count, int64_t stride, int head_dim, float* to) {
    int done = 0;
#ifndef __clang__
    for (; count == LANES && done + LANES <= head_dim; done += LANES) {
        Floats x[LANES];
        for (int j = 0; j < LANES; j++) x[j] = widened(base + keys[j] * stride + done);
#pragma GCC unroll 4
        for (int s = 1; s < LANES; s *= 2) {  // swap bit s of the lane with bit s of the key
            Ints low, high;
            for (int l = 0; l < LANES; l++) {
                low[l] = l & s ? LANES + l - s : l;
                high[l] = l & s ? LANES + l : l + s;
            }
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                if (i & s) continue;
                const Floats a = x[i], b = x[i + s];
                x[i] = __builtin_shuffle(a, b, low);
                x[i + s] = __builtin_shuffle(a, b, high);
            }
        }
        for (int d = 0; d < LANES; d++) store(to + (done + d) * STEP, x[d]);
    }
#endif
    for (int j = 0; j < count; j++)
        for (int d = done; d < head_dim; d++) to[d * STEP + j] = widen(base[keys[j] * stride + d]);
}

// The keys and values of a tile, filled up with zeros to whole steps.
template <typename T>
static void copy_keys(const Call& c, int64_t batch, int64_t kv_head, Scratch& s) {
    const int dim = (int)c.head_dim, wide = (dim + STEP - 1) / STEP * STEP;
    const int count = (int)s.keys.size(), span = (int)s.positions.size();
    const T* keys = (const T*)c.key.data + batch * c.key.batch + kv_head * c.key.head;
    const T* values = (const T*)c.value.data + batch * c.value.batch + kv_head * c.value.head;
    s.k.resize((size_t)span * dim);
    s.v.resize((size_t)span * wide);
    for (int from = 0; from < span; from += STEP) {
        float* to = &s.k[(size_t)from * dim];
        const int here = std::min(STEP, count - from);
        if (here < STEP) std::fill(to, to + (size_t)STEP * dim, 0.0f);
        for (int j = 0; j < here; j += LANES)
            transpose(keys, &s.keys[from + j], std::min(LANES, here - j), c.key.token, dim, to + j);
    }
    for (int j = 0; j < span; j++) {
        float* to = &s.v[(size_t)j * wide];
        const T* from = j < count ? values + s.keys[j] * c.value.token : nullptr;
        int d = 0;
        for (; from && d + LANES <= dim; d += LANES) store(to + d, widened(from + d));
        for (; from && d < dim; d++) to[d] = widen(from[d]);
        for (; d < wide; d++) to[d] = 0;
    }
}

// Where a step of rows begins and ends in the list of keys, and what it leaves out in between.
struct Stretch {
    int end, skip_from, skip_to;
    // The next start of a step of keys; `by` is STEP, or 1.
    int next(int j, int by) const { return j + by == skip_from ? skip_to : j + by; }
};

static Stretch stretch_of(const Shown& shown, const Scratch& s, int32_t first_row, int32_t last_row) {
    const auto begin = s.keys.begin(), stop = s.keys.end();
    const int end = (int)(std::upper_bound(begin, stop, last_row) - begin);
    if (shown.rank) return {end, -1, -1};
    const int32_t nearest = (int32_t)std::max<int64_t>(first_row - shown.width + 1, 0);
    const int from = (int)((shown.fixed + STEP - 1) / STEP * STEP);
    const int to = (int)(std::lower_bound(begin + shown.fixed, stop, nearest) - begin) / STEP * STEP;
    return from < to ? Stretch{end, from, to} : Stretch{end, -1, -1};
}

// The rows of a tile, ROWS at a time. `Place` says where a row's results go: (row, head, step's sums, maxima, totals).
template <typename T, typename Place>
static void attend_rows(
    const Call& c, int64_t batch, int64_t head_from, int64_t head_to, const Shown& shown, Scratch& s, Place place) {
    const int dim = (int)c.head_dim, wide = (dim + STEP - 1) / STEP * STEP, span = (int)s.positions.size();
    const int heads = (int)(head_to - head_from), flat = (int)s.rows.size() * heads;
    s.q.resize((size_t)ROWS * dim);
    s.scores.resize((size_t)ROWS * span);
    const T* queries = (const T*)c.query.data + batch * c.query.batch;
    for (int begun = 0; begun < flat; begun += ROWS) {
        const int count = std::min(ROWS, flat - begun);
        int32_t row[ROWS];
        int64_t head[ROWS];
        for (int r = 0; r < ROWS; r++) {  // what is missing of the last step are copies of its last row
            const int one = begun + std::min(r, count - 1);
            row[r] = s.rows[one / heads];
            head[r] = head_from + one % heads;
            const T* from = queries + head[r] * c.query.head + (row[r] - c.first) * c.query.token;
            for (int d = 0; d < dim; d++) s.q[d * ROWS + r] = widen(from[d]) * (c.scaling * LOG2_E);
        }
        const Stretch keys = stretch_of(shown, s, row[0], row[ROWS - 1]);
        const int start = keys.skip_from == 0 ? keys.skip_to : 0;
        Floats most[ROWS];
        for (int r = 0; r < ROWS; r++) most[r] = all(-INFINITY);
        for (int j = start; j < keys.end; j = keys.next(j, STEP)) {
            Floats sum[ROWS][2] = {};
            const float *k = &s.k[(size_t)j * dim], *q = s.q.data();
            for (int d = 0; d < dim; d++, k += STEP, q += ROWS) {
                const Floats k0 = load(k), k1 = load(k + LANES);
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) {
                    sum[r][0] += q[r] * k0;
                    sum[r][1] += q[r] * k1;
                }
            }
            Ints seen[2] = {};
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++) {
                for (int half = 0; half < 2; half++) {
                    const int from = j + half * LANES;
                    if (r == 0 || row[r] != row[r - 1]) {
                        const Ints position = load(&s.positions[from]);
                        Ints distance = load(&s.ranks[from]) - shown.of(row[r]);
                        distance = distance < 0 ? -distance : distance;
                        Ints near = distance < all((int32_t)shown.width);
                        if (shown.ring) near |= all((int32_t)shown.ring) - distance < all((int32_t)shown.width);
                        if (shown.apart) near &= position <= all((int32_t)(row[r] - shown.apart));
                        seen[half] = (near | load(&s.fixed[from])) & (position <= all(row[r]));
                    }
                    const Floats score = pick(seen[half], sum[r][half], all(-INFINITY));
                    store(&s.scores[(size_t)r * span + from], score);
                    most[r] = score > most[r] ? score : most[r];
                }
            }
        }
        float top[ROWS], total[ROWS];
        for (int r = 0; r < ROWS; r++) {
            top[r] = -INFINITY;
            for (int l = 0; l < LANES; l++) top[r] = std::max(top[r], most[r][l]);
            const float base = top[r] == -INFINITY ? 0 : top[r];  // a row may see nothing where parts are merged
            Floats sum = {};
            float* scores = s.scores.data() + (size_t)r * span;
            for (int j = start; j < keys.end; j = keys.next(j, STEP))
                for (int half = 0; half < 2; half++) {
                    const Floats weight = exp2v(load(scores + j + half * LANES) - base);
                    store(scores + j + half * LANES, weight);
                    sum += weight;
                }
            total[r] = 0;
            for (int l = 0; l < LANES; l++) total[r] += sum[l];
        }
        for (int component = 0; component < wide; component += STEP) {
            Floats sum[ROWS][2] = {};
            for (int j = start; j < keys.end; j = keys.next(j, 1)) {
                const float *v = &s.v[(size_t)j * wide + component], *weight = &s.scores[j];
                const Floats v0 = load(v), v1 = load(v + LANES);
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) {
                    sum[r][0] += weight[(size_t)r * span] * v0;
                    sum[r][1] += weight[(size_t)r * span] * v1;
                }
            }
            for (int r = 0; r < count; r++) place(row[r], head[r], component, sum[r], top[r], total[r]);
        }
    }
}

// Attention of the tile in the scratch, for some query heads; see `attend_rows` for `place`.
template <typename T, typename Place>
static void attend(
    const Call& c, int64_t batch, int64_t head_from, int64_t head_to, const Shown& shown, Scratch& s, Place place) {
    const int count = (int)s.keys.size(), span = (count + STEP - 1) / STEP * STEP;
    s.ranks.assign(span, 0);
    s.positions.assign(span, INT32_MAX);
    s.fixed.assign(span, 0);
    for (int j = 0; j < count; j++) {
        s.positions[j] = s.keys[j];
        s.ranks[j] = shown.of(s.keys[j]);
        s.fixed[j] = j < shown.fixed ? -1 : 0;
    }
    const int64_t group = c.heads / c.kv_heads;
    for (int64_t head = head_from; head < head_to;) {
        const int64_t kv_head = head / group, stop = std::min(head_to, (kv_head + 1) * group);
        copy_keys<T>(c, batch, kv_head, s);
        attend_rows<T>(c, batch, head, stop, shown, s, place);
        head = stop;
    }
}

// The tile's results are those of its queries.
template <typename T, typename O>
static void finish(const Call& c, int64_t batch, int64_t head_from, int64_t head_to, const Shown& shown, Scratch& s) {
    auto place = [&](int32_t row, int64_t head, int component, const Floats* sum, float top, float total) {
        float found[STEP];
        for (int half = 0; half < 2; half++) store(found + half * LANES, sum[half] * (total == 0 ? 0 : 1 / total));
        O* to = (O*)c.output.data + batch * c.output.batch + head * c.output.head + (row - c.first) * c.output.token;
        for (int d = component; d < std::min<int64_t>(component + STEP, c.head_dim); d++) narrow(found[d - component], to + d);
        if (c.lse && component == 0) *c.lse_of(batch, head, row) = natural(top, total);
    };
    attend<T>(c, batch, head_from, head_to, shown, s, place);
}

static void tile(const Call& c, int64_t batch, int64_t head_from, int64_t head_to, const Shown& shown, Scratch& s) {
    if (!c.is_bf16) finish<float, float>(c, batch, head_from, head_to, shown, s);
    else if (c.output_is_bf16) finish<bf16, bf16>(c, batch, head_from, head_to, shown, s);
    else finish<bf16, float>(c, batch, head_from, head_to, shown, s);
}

static inline float sum_of(Floats x) {
    float part[LANES];
    store(part, x);
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s; l++) part[l] += part[l + s];
    return part[0];
}

// One row that sees all keys of the list, whatever their order: nothing is copied.
template <typename T, typename O>
static void single_row(const Call& c, int64_t batch, int64_t head, int32_t row, Scratch& s) {
    constexpr int AT_ONCE = 4 * LANES;  // components of a value that are summed in registers
    const int dim = (int)c.head_dim, whole = dim / LANES * LANES, count = (int)s.keys.size();
    const int span = (count + LANES - 1) / LANES * LANES;
    const int64_t kv_head = head / (c.heads / c.kv_heads);
    const T* query = (const T*)c.query.data + batch * c.query.batch + head * c.query.head + (row - c.first) * c.query.token;
    const T* keys = (const T*)c.key.data + batch * c.key.batch + kv_head * c.key.head;
    const T* values = (const T*)c.value.data + batch * c.value.batch + kv_head * c.value.head;
    O* output = (O*)c.output.data + batch * c.output.batch + head * c.output.head + (row - c.first) * c.output.token;
    s.q.resize(dim);
    s.scores.resize(span);
    for (int d = 0; d < dim; d++) s.q[d] = widen(query[d]) * (c.scaling * LOG2_E);
    Floats most = all(-INFINITY);
    for (int j = 0; j < span; j += LANES) {
        float scores[LANES];
        for (int l = 0; l < LANES; l++) {
            scores[l] = -INFINITY;
            if (j + l >= count) continue;
            const T* key = keys + s.keys[j + l] * c.key.token;
            Floats sum = {};
            for (int d = 0; d < whole; d += LANES) sum += load(&s.q[d]) * widened(key + d);
            scores[l] = sum_of(sum);
            for (int d = whole; d < dim; d++) scores[l] += s.q[d] * widen(key[d]);
        }
        const Floats found = load(scores);
        store(&s.scores[j], found);
        most = found > most ? found : most;
    }
    float top = -INFINITY, total = 0;
    for (int l = 0; l < LANES; l++) top = std::max(top, most[l]);
    for (int j = 0; j < span; j += LANES) {
        const Floats weight = exp2v(load(&s.scores[j]) - top);
        store(&s.scores[j], weight);
        total += sum_of(weight);
    }
    for (int from = 0; from < whole; from += AT_ONCE) {
        Floats sum[4] = {};
        const int parts = std::min(AT_ONCE, whole - from) / LANES;
        auto add = [&](int used) {
            for (int j = 0; j < count; j++) {
                const T* value = values + s.keys[j] * c.value.token + from;
                for (int part = 0; part < used; part++) sum[part] += s.scores[j] * widened(value + part * LANES);
            }
        };
        parts == 4 ? add(4) : add(parts);
        for (int part = 0; part < parts; part++) {
            float found[LANES];
            store(found, sum[part] * (1 / total));
            for (int l = 0; l < LANES; l++) narrow(found[l], output + from + part * LANES + l);
        }
    }
    for (int d = whole; d < dim; d++) {
        float sum = 0;
        for (int j = 0; j < count; j++) sum += s.scores[j] * widen(values[s.keys[j] * c.value.token + d]);
        narrow(sum / total, output + d);
    }
}

static void single(const Call& c, int64_t batch, int64_t head, int32_t row, Scratch& s) {
    if (!c.is_bf16) single_row<float, float>(c, batch, head, row, s);
    else if (c.output_is_bf16) single_row<bf16, bf16>(c, batch, head, row, s);
    else single_row<bf16, float>(c, batch, head, row, s);
}

// work(unit, scratch) for all units, on several threads, fewer where the system gives no more. Which thread does what
// changes no result. What one of them throws is thrown here, once all have ended.
template <typename Work>
static void in_parallel(int64_t threads, int64_t units, Work work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failed;
    std::mutex failing;
    auto run = [&] {
        try {
            Scratch s;
            for (int64_t unit; (unit = next.fetch_add(1)) < units;) work(unit, s);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failing);
            failed = std::current_exception();
            next = units;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < std::min(threads, units); t++) others.emplace_back(run);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    run();
    for (auto& one : others) one.join();
    if (failed) std::rethrow_exception(failed);
}

// What the functions below return: 0, or 1 where there was not enough memory.
template <typename Work>
static int32_t guarded(Work work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

static void sort_unique(std::vector<int32_t>& list) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
}

static void add_range(std::vector<int32_t>& list, int64_t from, int64_t to) {
    for (int64_t token = from; token < to; token++) list.push_back((int32_t)token);
}

// Keys whose ranks differ from the query's by less than `width`, and sinks (`Pattern` Band).
//
// order: the token of every rank, rank: its inverse, by_rank: the queries in the order of their ranks; null where a
// token's rank is its position. apart: keys nearer than this, and sinks, are left out: they are parts of their own.
static void band_of(const Call& c, const int64_t* order, const int32_t* rank, const int32_t* by_rank,
                    int64_t horizon, int64_t width, int64_t circular, int64_t sinks, int64_t apart, int64_t rows) {
    const int64_t queries = c.length - c.first, tiles = (queries + rows - 1) / rows, shown_sinks = apart ? 0 : sinks;
    in_parallel(c.threads, tiles * c.batch, [&](int64_t unit, Scratch& s) {
        const int64_t from = unit % tiles * rows, to = std::min(queries, from + rows);
        s.rows.clear();
        s.keys.clear();
        if (!rank) {
            add_range(s.rows, c.first + from, c.first + to);
            const int64_t low = std::max<int64_t>(0, c.first + from - width + 1);
            add_range(s.keys, 0, std::min(shown_sinks, low));
            add_range(s.keys, low, c.first + to);
        } else {
            s.rows.assign(by_rank + from, by_rank + to);
            // The windows of the queries in one go; on a ring they begin and end anywhere, one turn at most.
            int64_t next = circular ? rank[s.rows[0]] - width + 1 : 0;
            const int64_t stop = next + horizon;
            for (int32_t row : s.rows) {
                const int64_t high = std::min(stop, rank[row] + width);
                for (next = std::max(next, rank[row] - width + 1); next < high; next++) {
                    const int64_t token = order[(next + horizon) % horizon];
                    if (token < c.length && token >= (apart ? sinks : 0)) s.keys.push_back((int32_t)token);
                }
            }
            add_range(s.keys, 0, shown_sinks);
            sort_unique(s.keys);
            std::sort(s.rows.begin(), s.rows.end());
        }
        const int64_t fixed = std::lower_bound(s.keys.begin(), s.keys.end(), (int32_t)shown_sinks) - s.keys.begin();
        tile(c, unit / tiles, 0, c.heads, Shown{fixed, width, apart, circular ? horizon : 0, rank}, s);
    });
}

// The tokens of the query's own run that precede it, and sinks (`Pattern` Blocks without selected runs). Positions
// ascend inside a run. order: the token of every rank, or null.
static void runs_of(const Call& c, const int64_t* order, int64_t horizon, int64_t size, int64_t sinks, int64_t apart,
                    int64_t rows) {
    const int64_t runs = (horizon + size - 1) / size, steps = (size + rows - 1) / rows;
    in_parallel(c.threads, runs * steps * c.batch, [&](int64_t unit, Scratch& s) {
        const int64_t step = unit % steps, run = unit / steps % runs, stop = std::min(horizon, (run + 1) * size);
        s.rows.clear();
        s.keys.clear();
        for (int64_t r = run * size; r < stop; r++) {
            const int64_t token = order ? order[r] : r;
            if (token >= c.length) break;
            if (token >= (apart ? sinks : 0)) s.keys.push_back((int32_t)token);
            if (token >= c.first && (r - run * size) / rows == step) s.rows.push_back((int32_t)token);
            if ((r - run * size) / rows > step) break;
        }
        if (s.rows.empty()) return;
        if (!apart) add_range(s.keys, 0, std::min(sinks, c.length));
        sort_unique(s.keys);
        tile(c, unit / steps / runs, 0, c.heads, Shown{apart ? 0 : (int64_t)s.keys.size(), INT_MAX, apart, 0, nullptr}, s);
    });
}

// As `runs` with the identity order, and all tokens of selected earlier runs, for float32 output (`Pattern` Blocks).
//
// selected: [batch, heads, queries, chosen], -1 where there is none. Every run is computed for all queries that want it,
// and what a query has so far is kept without its divisor.
template <typename T>
static void chosen_runs_of(const Call& c, const int64_t* selected, int64_t chosen, int64_t size, int64_t sinks,
                           int64_t apart) {
    const int64_t queries = c.length - c.first, runs = (c.length + size - 1) / size;
    in_parallel(c.threads, c.batch * c.heads, [&](int64_t unit, Scratch& s) {
        const int64_t batch = unit / c.heads, head = unit % c.heads;
        const int64_t* wanted = selected + unit * queries * chosen;
        std::vector<int64_t> begin(runs + 1);  // of the queries that want a run, in the list of all of them
        for (int64_t i = 0; i < queries * chosen; i++)
            if (wanted[i] >= 0) begin[wanted[i] + 1]++;
        std::partial_sum(begin.begin(), begin.end(), begin.begin());
        std::vector<int32_t> by_run(begin[runs]);
        std::vector<int64_t> next(begin);
        for (int64_t i = 0; i < queries * chosen; i++)
            if (wanted[i] >= 0) by_run[next[wanted[i]]++] = (int32_t)(c.first + i / chosen);
        std::vector<float> tops(queries, -INFINITY), totals(queries, 0);
        float* output = (float*)c.output.data + batch * c.output.batch + head * c.output.head;
        auto add = [&](int32_t row, int64_t, int component, const Floats* sum, float top, float total) {
            const int64_t query = row - c.first;
            const float known = tops[query], base = std::max(known, top);
            const float old_share = known == -INFINITY ? 0 : std::exp2(known - base);
            const float share = top == -INFINITY ? 0 : std::exp2(top - base);
            float found[STEP], *to = output + query * c.output.token;
            for (int half = 0; half < 2; half++) store(found + half * LANES, sum[half] * share);
            for (int d = component; d < std::min<int64_t>(component + STEP, c.head_dim); d++)
                to[d] = (known == -INFINITY ? 0 : to[d] * old_share) + found[d - component];
            if (component + STEP < c.head_dim) return;
            totals[query] = totals[query] * old_share + total * share;
            tops[query] = base;
        };
        for (int64_t run = 0; run < runs; run++) {
            const int64_t from = std::max(run * size, sinks), to = std::min(c.length, (run + 1) * size);
            auto attended = [&] {
                const int64_t count = (int64_t)s.keys.size();
                if (s.rows.empty() || !count) return;
                attend<T>(c, batch, head, head + 1, Shown{apart ? 0 : count, INT_MAX, apart, 0, nullptr}, s, add);
            };
            s.rows.clear();
            s.keys.clear();
            add_range(s.rows, std::max(c.first, run * size), to);  // its own queries
            if (!s.rows.empty()) {
                add_range(s.keys, 0, apart ? 0 : std::min(sinks, to));
                add_range(s.keys, from, to);
                attended();
            }
            s.rows.assign(by_run.begin() + begin[run], by_run.begin() + begin[run + 1]);
            s.keys.clear();
            if (!s.rows.empty()) add_range(s.keys, from, to);
            attended();
        }
        for (int64_t query = 0; query < queries; query++) {
            float* to = output + query * c.output.token;
            for (int d = 0; d < c.head_dim; d++) to[d] = totals[query] == 0 ? 0 : to[d] / totals[query];
            if (c.lse) *c.lse_of(batch, head, (int32_t)(c.first + query)) = natural(tops[query], totals[query]);
        }
    });
}

// Sinks, chosen blocks and a local window per tile of queries (`Pattern` Selected).
//
// selected: [batch, choosers, tiles, chosen], -1 where there is none.
static void selected_of(const Call& c, const int64_t* selected, int64_t choosers, int64_t chosen, int64_t block_size,
                        int64_t query_block, int64_t whole, int64_t sinks, int64_t local) {
    const int64_t edge = std::clamp(whole, c.first, c.length);  // queries before it see everything
    constexpr int64_t together = 32;
    const int64_t steps = (edge - c.first + together - 1) / together;
    in_parallel(c.threads, steps * c.batch, [&](int64_t unit, Scratch& s) {
        const int64_t from = c.first + unit % steps * together, to = std::min(edge, from + together);
        s.rows.clear();
        s.keys.clear();
        add_range(s.rows, from, to);
        add_range(s.keys, 0, to);
        tile(c, unit / steps, 0, c.heads, Shown{to, 1, 0, 0, nullptr}, s);
    });
    const int64_t first_tile = c.first / query_block, tiles = (c.length - 1) / query_block + 1 - first_tile;
    const int64_t heads = c.heads / choosers;
    constexpr int64_t FEW = ROWS / 3;  // rows that would leave most of a step of ROWS empty
    in_parallel(c.threads, tiles * choosers * c.batch, [&](int64_t unit, Scratch& s) {
        const int64_t t = unit % tiles, chooser = unit / tiles % choosers, batch = unit / tiles / choosers;
        const int64_t begin = std::max(edge, (first_tile + t) * query_block);
        const int64_t end = std::min(c.length, (first_tile + t + 1) * query_block);
        if (begin >= end) return;
        s.rows.clear();
        s.keys.clear();
        add_range(s.rows, begin, end);
        add_range(s.keys, 0, sinks);
        const int64_t* list = selected + unit * chosen;
        for (int64_t i = 0; i < chosen; i++)
            if (list[i] >= 0) add_range(s.keys, sinks + list[i] * block_size, sinks + (list[i] + 1) * block_size);
        if (end - begin == 1 && heads <= FEW) {
            add_range(s.keys, std::max(sinks, begin - local + 1), end);
            for (int64_t h = 0; h < heads; h++) single(c, batch, chooser * heads + h, (int32_t)begin, s);
            return;
        }
        std::sort(s.keys.begin(), s.keys.end());
        const int64_t fixed = (int64_t)s.keys.size();
        add_range(s.keys, std::max(sinks, begin - local + 1), end);
        tile(c, batch, chooser * heads, (chooser + 1) * heads, Shown{fixed, local, 0, 0, nullptr}, s);
    });
}

// The largest entries seen so far, descending, and their columns; of equal entries the first ones stay.
struct Best {
    std::vector<float> entries;
    std::vector<int32_t> columns;
    void clear(int64_t count) {
        entries.assign(count, -INFINITY);
        columns.assign(count, -1);
    }
    void add(float entry, int64_t column) {
        int64_t j = (int64_t)entries.size() - 1;
        if (entry <= entries[j]) return;
        for (entry = std::isnan(entry) ? INFINITY : entry; j > 0 && entries[j - 1] < entry; j--) {
            entries[j] = entries[j - 1];
            columns[j] = columns[j - 1];
        }
        entries[j] = entry;
        columns[j] = (int32_t)column;
    }
};

// The largest number that is known to lie below the `best.size()` largest entries of a row: these are at least as large
// as as many largest ones of the largest entries of groups of columns.
static float bound_of(const float* row, int64_t columns, Best& best, std::vector<float>& peaks) {
    const int64_t groups = (4 * (int64_t)best.entries.size() + LANES - 1) / LANES * LANES;
    if (columns < 4 * groups) return -INFINITY;
    peaks.assign(row, row + groups);
    for (int64_t from = groups; from + groups <= columns; from += groups)
        for (int64_t g = 0; g < groups; g += LANES) {
            const Floats entry = load(row + from + g), peak = load(&peaks[g]);
            store(&peaks[g], entry > peak ? entry : peak);
        }
    for (int64_t g = 0; g < groups; g++) best.add(peaks[g], g);
    const float least = best.entries.back();
    best.clear(best.entries.size());
    return std::nextafter(least, -INFINITY);
}

// The columns of the `count` largest entries of every row, ascending; -1 first where fewer are above minus infinity.
static void largest_of(const float* entries, int64_t rows, int64_t columns, int64_t count, int64_t* found,
                       int64_t threads) {
    constexpr int64_t ROWS_OF_UNIT = 64, AT_ONCE = 4 * LANES;
    in_parallel(threads, (rows + ROWS_OF_UNIT - 1) / ROWS_OF_UNIT, [&](int64_t unit, Scratch& s) {
        Best best;
        for (int64_t r = unit * ROWS_OF_UNIT; r < std::min(rows, (unit + 1) * ROWS_OF_UNIT); r++) {
            const float* row = entries + r * columns;
            best.clear(count);
            const float bound = bound_of(row, columns, best, s.scores);
            int64_t column = 0;
            for (; column + AT_ONCE <= columns; column += AT_ONCE) {
                const Floats low = all(std::max(bound, best.entries.back()));
                Ints above = {};
                for (int64_t j = column; j < column + AT_ONCE; j += LANES) above |= ~(load(row + j) <= low);
                int64_t parts[LANES / 2], any = 0;
                std::memcpy(parts, &above, sizeof parts);
                for (int64_t part : parts) any |= part;
                if (!any) continue;
                for (int64_t j = column; j < column + AT_ONCE; j++)
                    if (!(row[j] <= bound)) best.add(row[j], j);
            }
            for (; column < columns; column++) best.add(row[column], column);
            std::sort(best.columns.begin(), best.columns.end());
            std::copy(best.columns.begin(), best.columns.end(), found + r * count);
        }
    });
}

extern "C" {

int32_t largest(const float* entries, int64_t rows, int64_t columns, int64_t count, int64_t* found, int64_t threads) {
    return guarded([&] { largest_of(entries, rows, columns, count, found, threads); });
}

int32_t band(const Call* c, const int64_t* order, const int32_t* rank, const int32_t* by_rank, int64_t horizon,
             int64_t width, int64_t circular, int64_t sinks, int64_t apart, int64_t rows) {
    return guarded([&] { band_of(*c, order, rank, by_rank, horizon, width, circular, sinks, apart, rows); });
}

int32_t runs(const Call* c, const int64_t* order, int64_t horizon, int64_t size, int64_t sinks, int64_t apart,
             int64_t rows) {
    return guarded([&] { runs_of(*c, order, horizon, size, sinks, apart, rows); });
}

int32_t chosen_runs(const Call* c, const int64_t* selected, int64_t chosen, int64_t size, int64_t sinks,
                    int64_t apart) {
    return guarded([&] {
        if (c->is_bf16) chosen_runs_of<bf16>(*c, selected, chosen, size, sinks, apart);
        else chosen_runs_of<float>(*c, selected, chosen, size, sinks, apart);
    });
}

int32_t selected(const Call* c, const int64_t* selected, int64_t choosers, int64_t chosen, int64_t block_size,
                 int64_t query_block, int64_t whole, int64_t sinks, int64_t local) {
    return guarded([&] { selected_of(*c, selected, choosers, chosen, block_size, query_block, whole, sinks, local); });
}
}
