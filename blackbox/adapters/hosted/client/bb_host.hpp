// bb_host for C++17: see bb_host.h. Arrays are given with their sizes, such as a std::vector and {64, 64}.
//
//     if (!bb::exchange("closure", vorticity.data(), {64, 64}, tendency.data(), {64, 64}))
//         my_own_closure(vorticity, tendency);
#ifndef BB_HOST_HPP
#define BB_HOST_HPP

#include "bb_host.h"

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace bb {

using Dims = std::vector<int>;

template <class T>
constexpr int type_of() {
  static_assert(std::is_arithmetic_v<T>, "bb: expected arrays of numbers");
  if constexpr (std::is_same_v<T, float>) return BB_FLOAT;
  else if constexpr (std::is_same_v<T, double>) return BB_DOUBLE;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 4) return BB_INT;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 8) return BB_LONG;
  else {
    static_assert(sizeof(T) == 1, "bb: expected float, double, or integers of 1, 4 or 8 bytes");
    return BB_BYTE;
  }
}

// Connect, if a trainer has started the program; whether it has. The others call it by themselves.
inline bool open() { return bb_open() != 0; }
inline bool open(int rank, int size) { return bb_open_part(rank, size) != 0; }

// What is put may change or be gone behind the line: it is copied.
template <class T>
void put(const char *name, const T *data, const Dims &dims) {
  bb_put_copy(name, type_of<T>(), static_cast<int>(dims.size()), dims.data(), data);
}

template <class T>
void put_part(const char *name, const T *data, const Dims &dims, const Dims &first, const Dims &whole) {
  if (first.size() != dims.size() || whole.size() != dims.size()) {
    std::fprintf(stderr, "blackbox: expected first and whole with a number for each of %zu dimensions, got "
                 "others of: %s\n",
                 dims.size(), name);
    std::exit(70);
  }
  bb_put_part_copy(name, type_of<T>(), static_cast<int>(dims.size()), dims.data(), first.data(), whole.data(),
                   data);
}

inline bool call(const char *name) { return bb_call(name) != 0; }

template <class T>
void get(const char *name, T *data, const Dims &dims) {
  static_assert(std::is_floating_point_v<T>, "bb: expected float or double for an answer");
  bb_get(name, type_of<T>(), static_cast<int>(dims.size()), dims.data(), data);
}

// One array in and one out; false, and nothing changed, where nobody trains.
template <class T>
bool exchange(const char *name, const T *in, const Dims &in_dims, T *out, const Dims &out_dims) {
  static_assert(std::is_floating_point_v<T>, "bb: expected float or double");
  const int in_rank = static_cast<int>(in_dims.size()), out_rank = static_cast<int>(out_dims.size());
  if constexpr (std::is_same_v<T, float>)
    return bb_exchange_float(name, in, in_rank, in_dims.data(), out, out_rank, out_dims.data()) != 0;
  else
    return bb_exchange(name, in, in_rank, in_dims.data(), out, out_rank, out_dims.data()) != 0;
}

template <class T>
void output(const char *name, const T *data, const Dims &dims) {
  bb_output(name, type_of<T>(), static_cast<int>(dims.size()), dims.data(), data);
}

inline void close() { bb_close(); }

}  // namespace bb

#endif
