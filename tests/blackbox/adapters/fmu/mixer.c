/* An FMU for co-simulation, FMI 3, at one instant: y = tanh(a u) w, z = w |u|^2 + a[1][2], signs = the number of u > 0.

   Directional derivatives are refused for variables that are no floats, as the standard has it. */
#include <math.h>
#include <stdlib.h>

#include "fmi3Functions.h"

enum { A, U, W, Y, SIGNS, Z };
static const size_t size[] = {6, 3, 1, 2, 0, 1};

typedef struct { double a[6], u[3], w; } Mixer;

static double *place(Mixer *m, fmi3ValueReference r) { return r == A ? m->a : r == U ? m->u : &m->w; }

/* y and z, and what they change by along a direction */
static void results(const Mixer *m, const Mixer *d, double y[2], double dy[2], double *z, double *dz) {
    *z = m->a[5], *dz = d->a[5];
    for (int j = 0; j < 3; j++) {
        *z += m->w * m->u[j] * m->u[j];
        *dz += d->w * m->u[j] * m->u[j] + 2 * m->w * m->u[j] * d->u[j];
    }
    for (int i = 0; i < 2; i++) {
        double sum = 0, along = 0;
        for (int j = 0; j < 3; j++) {
            sum += m->a[3 * i + j] * m->u[j];
            along += d->a[3 * i + j] * m->u[j] + m->a[3 * i + j] * d->u[j];
        }
        y[i] = tanh(sum) * m->w;
        dy[i] = (1 - tanh(sum) * tanh(sum)) * along * m->w + tanh(sum) * d->w;
    }
}

fmi3Instance fmi3InstantiateCoSimulation(
    fmi3String name, fmi3String token, fmi3String resources, fmi3Boolean visible, fmi3Boolean logging, fmi3Boolean events,
    fmi3Boolean early, const fmi3ValueReference required[], size_t n, fmi3InstanceEnvironment environment,
    fmi3LogMessageCallback log, fmi3IntermediateUpdateCallback update) {
    Mixer *m = calloc(1, sizeof *m);
    m->w = 1;
    return m;
}

void fmi3FreeInstance(fmi3Instance c) { free(c); }

fmi3Status fmi3SetFloat64(fmi3Instance c, const fmi3ValueReference r[], size_t n, const fmi3Float64 v[], size_t count) {
    for (size_t i = 0, k = 0; i < n; i++)
        for (size_t j = 0; j < size[r[i]]; j++) place(c, r[i])[j] = v[k++];
    return fmi3OK;
}

fmi3Status fmi3SetFloat32(fmi3Instance c, const fmi3ValueReference r[], size_t n, const fmi3Float32 v[], size_t count) {
    ((Mixer *)c)->w = v[0];
    return fmi3OK;
}

fmi3Status fmi3GetFloat64(fmi3Instance c, const fmi3ValueReference r[], size_t n, fmi3Float64 v[], size_t count) {
    double dy[2], z, dz;
    Mixer still = {0};
    if (n != 1 || r[0] != Y || count != 2) return fmi3Error;
    results(c, &still, v, dy, &z, &dz);
    return fmi3OK;
}

fmi3Status fmi3GetFloat32(fmi3Instance c, const fmi3ValueReference r[], size_t n, fmi3Float32 v[], size_t count) {
    double y[2], dy[2], z, dz;
    Mixer still = {0};
    results(c, &still, y, dy, &z, &dz);
    v[0] = z;
    return fmi3OK;
}

fmi3Status fmi3GetInt32(fmi3Instance c, const fmi3ValueReference r[], size_t n, fmi3Int32 v[], size_t count) {
    v[0] = 0;
    for (int j = 0; j < 3; j++) v[0] += ((Mixer *)c)->u[j] > 0;
    return fmi3OK;
}

fmi3Status fmi3GetDirectionalDerivative(fmi3Instance c, const fmi3ValueReference unknowns[], size_t n, const fmi3ValueReference knowns[],
                                        size_t m, const fmi3Float64 seed[], size_t seeds, fmi3Float64 found[], size_t founds) {
    Mixer d = {0};
    double y[2], dy[2], z, dz;
    size_t k = 0, asked = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < size[knowns[i]]; j++) {
            if (k == seeds) return fmi3Error;
            place(&d, knowns[i])[j] = seed[k++];
        }
    for (size_t i = 0; i < n; i++) asked += unknowns[i] == Y ? 2 : unknowns[i] == Z ? 1 : 100;
    if (k != seeds || asked != founds) return fmi3Error;
    results(c, &d, y, dy, &z, &dz);
    for (size_t i = 0, to = 0; i < n; i++) {
        if (unknowns[i] == Z) found[to++] = dz;
        else found[to++] = dy[0], found[to++] = dy[1];
    }
    return fmi3OK;
}

fmi3Status fmi3DoStep(fmi3Instance c, fmi3Float64 time, fmi3Float64 step, fmi3Boolean no, fmi3Boolean *events, fmi3Boolean *ends,
                      fmi3Boolean *early, fmi3Float64 *last) {
    *events = *ends = *early = 0, *last = time + step;
    return fmi3OK;
}

#define OK(name, ...) \
    fmi3Status name(__VA_ARGS__) { return fmi3OK; }
const char *fmi3GetVersion(void) { return "3.0"; }
OK(fmi3SetDebugLogging, fmi3Instance c, fmi3Boolean on, size_t n, const fmi3String w[])
OK(fmi3EnterInitializationMode, fmi3Instance c, fmi3Boolean a, fmi3Float64 t, fmi3Float64 s, fmi3Boolean b, fmi3Float64 e)
OK(fmi3ExitInitializationMode, fmi3Instance c)
OK(fmi3Terminate, fmi3Instance c)
OK(fmi3Reset, fmi3Instance c)
