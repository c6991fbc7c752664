// Barotropic quasi-geostrophic flow on a beta plane, doubly periodic, by Fourier modes (FFTW): a time loop as people have it.
//
//   qg start N SEED UNITS FILE            a random start, run for so many units of time; writes the vorticity to FILE
//   qg run N FILE STEPS DT EVERY OUT      from FILE; writes the vorticity after each EVERY steps to OUT
//
// With a smaller N than the file's, the vorticity is cut to N x N cells first. In each step the program asks for what the
// cells that are not there do to the vorticity; by itself it takes nothing for that. Files are N x N doubles, records one
// behind the other. The only lines that know of training are the two with bb_host.
#include <fftw3.h>

#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bb_host.hpp"

using Complex = std::complex<double>;

constexpr double BETA = 10.0, DRAG = 0.1, VISCOSITY = 3e-3, FORCING = 6.0;
constexpr int FORCED = 4;  // the wave number of the forcing

struct Flow {
  int n, half;
  std::vector<double> grid;
  std::vector<Complex> modes;
  fftw_plan forth, back;

  explicit Flow(int n) : n(n), half(n / 2 + 1), grid(n * n), modes(n * half) {
    auto *m = reinterpret_cast<fftw_complex *>(modes.data());
    forth = fftw_plan_dft_r2c_2d(n, n, grid.data(), m, FFTW_ESTIMATE);
    back = fftw_plan_dft_c2r_2d(n, n, m, grid.data(), FFTW_ESTIMATE);
  }

  std::vector<Complex> analysed(const std::vector<double> &values) {
    grid = values;
    fftw_execute(forth);
    for (auto &m : modes) m /= double(n) * n;
    return modes;
  }

  std::vector<double> composed(const std::vector<Complex> &of) {
    modes = of;
    fftw_execute(back);
    return grid;
  }

  int wave(int row) const { return row <= n / 2 ? row : row - n; }
};

// dq/dt of the modes: advection without the third of the waves that products alias into, beta, drag, friction, forcing.
std::vector<Complex> rate(Flow &f, const std::vector<Complex> &q) {
  const Complex i(0, 1);
  std::vector<Complex> u(q.size()), v(q.size()), out(q.size()), part(q.size());
  for (int y = 0; y < f.n; y++)
    for (int x = 0; x < f.half; x++) {
      const double k = x, l = f.wave(y), square = k * k + l * l;
      const bool kept = 3 * std::abs(l) < f.n && 3 * k < f.n;
      const Complex psi = square > 0 && kept ? -q[y * f.half + x] / square : 0.0;
      u[y * f.half + x] = -i * l * psi;
      v[y * f.half + x] = i * k * psi;
      part[y * f.half + x] = kept ? q[y * f.half + x] : 0.0;
    }
  const auto us = f.composed(u), vs = f.composed(v), qs = f.composed(part);
  std::vector<double> uq(qs.size()), vq(qs.size());
  for (size_t c = 0; c < qs.size(); c++) uq[c] = us[c] * qs[c], vq[c] = vs[c] * qs[c];
  const auto a = f.analysed(uq), b = f.analysed(vq);
  for (int y = 0; y < f.n; y++)
    for (int x = 0; x < f.half; x++) {
      const double k = x, l = f.wave(y), square = k * k + l * l;
      const bool kept = 3 * std::abs(l) < f.n && 3 * k < f.n;
      const int c = y * f.half + x;
      out[c] = kept ? -i * k * a[c] - i * l * b[c] - BETA * v[c] : 0.0;
      out[c] -= (DRAG + VISCOSITY * square) * q[c];
    }
  // a force that does not move: -F cos(4 y) in the vorticity
  out[FORCED * f.half] -= FORCING / 2;
  out[(f.n - FORCED) * f.half] -= FORCING / 2;
  return out;
}

void step(Flow &f, std::vector<Complex> &q, double dt, const std::vector<Complex> *closure) {
  auto with = [&](const std::vector<Complex> &at) {
    auto r = rate(f, at);
    if (closure)
      for (size_t c = 0; c < r.size(); c++) r[c] += (*closure)[c];
    return r;
  };
  auto moved = [&](const std::vector<Complex> &by, double h) {
    auto z = q;
    for (size_t c = 0; c < z.size(); c++) z[c] += h * by[c];
    return z;
  };
  const auto a = with(q), b = with(moved(a, dt / 2)), c = with(moved(b, dt / 2)), d = with(moved(c, dt));
  for (size_t k = 0; k < q.size(); k++) q[k] += dt / 6 * (a[k] + 2.0 * b[k] + 2.0 * c[k] + d[k]);
}

std::vector<double> cut(const std::vector<double> &values, int from, int to) {
  Flow large(from), small(to);
  const auto all = large.analysed(values);
  std::vector<Complex> kept(small.modes.size());
  for (int y = 0; y < to; y++)
    for (int x = 0; x < to / 2; x++) {
      const int l = small.wave(y);
      if (2 * std::abs(l) < to) kept[y * small.half + x] = all[((l + from) % from) * large.half + x];
    }
  return small.composed(kept);
}

std::vector<double> read(const char *path) {
  FILE *file = std::fopen(path, "rb");
  if (!file) std::fprintf(stderr, "no file %s\n", path), std::exit(1);
  std::fseek(file, 0, SEEK_END);
  std::vector<double> values(std::ftell(file) / sizeof(double));
  std::rewind(file);
  if (std::fread(values.data(), sizeof(double), values.size(), file) != values.size()) std::exit(1);
  std::fclose(file);
  return values;
}

int main(int count, char **words) {
  const std::string mode = count > 1 ? words[1] : "";
  if (mode == "start" && count == 6) {
    const int n = std::atoi(words[2]);
    Flow f(n);
    std::mt19937 draws(std::atoi(words[3]));
    std::normal_distribution<double> normal;
    std::vector<Complex> q(f.modes.size());
    for (int y = 0; y < n; y++)
      for (int x = 0; x < 8; x++)
        if (std::abs(f.wave(y)) < 8 && x + std::abs(f.wave(y)) > 0) q[y * f.half + x] = 0.1 * Complex(normal(draws), normal(draws));
    q = f.analysed(f.composed(q));
    const double dt = 0.4 / n;
    for (int s = 0; s * dt < std::atof(words[4]); s++) step(f, q, dt, nullptr);
    FILE *out = std::fopen(words[5], "wb");
    const auto values = f.composed(q);
    std::fwrite(values.data(), sizeof(double), values.size(), out);
    std::fclose(out);
    return 0;
  }
  if (mode != "run" || count != 8) {
    std::fprintf(stderr, "usage: qg start N SEED UNITS FILE | qg run N FILE STEPS DT EVERY OUT\n");
    return 1;
  }
  const int n = std::atoi(words[2]), steps = std::atoi(words[4]), every = std::atoi(words[6]);
  const double dt = std::atof(words[5]);
  auto values = read(words[3]);
  const int from = int(std::lround(std::sqrt(double(values.size()))));
  if (from != n) values = cut(values, from, n);
  Flow f(n);
  auto q = f.analysed(values);
  FILE *out = std::strcmp(words[7], "-") ? std::fopen(words[7], "wb") : nullptr;
  std::vector<double> closure(n * n);
  for (int s = 0; s < steps; s++) {
    const auto now = f.composed(q);
    if (bb::exchange("closure", now.data(), {n, n}, closure.data(), {n, n})) {
      const auto modes = f.analysed(closure);
      step(f, q, dt, &modes);
    } else {
      step(f, q, dt, nullptr);
    }
    if (out && (s + 1) % every == 0) {
      const auto then = f.composed(q);
      std::fwrite(then.data(), sizeof(double), then.size(), out);
    }
    if (!std::isfinite(std::abs(q[1]))) {
      std::fprintf(stderr, "no number after %d steps\n", s + 1);
      return 2;
    }
  }
  if (out) std::fclose(out);
  return 0;
}
