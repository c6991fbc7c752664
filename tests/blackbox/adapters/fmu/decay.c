/* An FMU for co-simulation, FMI 2: x' = u - k x, x(0) = x0, and y = x + sin(k) u.

   k < 0 is an error of a step, k > 100 a step that is discarded, k > 10000 one that never ends, and with "sticky" no reset follows an error. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fmi2Functions.h"

enum { K, X0, U, Y };

typedef struct {
    double real[4], x;
    int count, sticky, failed;
    fmi2CallbackLogger log;
    fmi2ComponentEnvironment environment;
} Decay;

static void start(Decay *d) {
    d->real[K] = 0.5, d->real[X0] = 1, d->real[U] = 0;
    d->count = 1, d->sticky = 0, d->failed = 0, d->x = 1;
}

static fmi2Status error(Decay *d, fmi2Status status, const char *words) {
    d->failed = 1;
    d->log(d->environment, "decay", status, "logStatusError", words, d->real[K]);
    return status;
}

fmi2Component fmi2Instantiate(fmi2String name, fmi2Type type, fmi2String guid, fmi2String resources,
                              const fmi2CallbackFunctions *functions, fmi2Boolean visible, fmi2Boolean logging) {
    Decay *d = calloc(1, sizeof *d);
    d->log = functions->logger, d->environment = functions->componentEnvironment;
    start(d);
    return d;
}

void fmi2FreeInstance(fmi2Component c) { free(c); }

fmi2Status fmi2Reset(fmi2Component c) {
    Decay *d = c;
    if (d->failed && d->sticky) return fmi2Error;
    start(d);
    return fmi2OK;
}

fmi2Status fmi2EnterInitializationMode(fmi2Component c) {
    ((Decay *)c)->x = ((Decay *)c)->real[X0];
    return fmi2OK;
}

fmi2Status fmi2DoStep(fmi2Component c, fmi2Real time, fmi2Real size, fmi2Boolean same) {
    Decay *d = c;
    while (d->real[K] > 10000) sleep(1);
    if (d->real[K] < 0) return error(d, fmi2Error, "k is negative: %g");
    if (d->real[K] > 100) return error(d, fmi2Discard, "k is too large");
    d->x += size * d->count * (d->real[U] - d->real[K] * d->x);
    return fmi2OK;
}

fmi2Status fmi2GetReal(fmi2Component c, const fmi2ValueReference r[], size_t n, fmi2Real value[]) {
    Decay *d = c;
    d->real[Y] = d->x + sin(d->real[K]) * d->real[U];
    for (size_t i = 0; i < n; i++) value[i] = d->real[r[i]];
    return fmi2OK;
}

fmi2Status fmi2SetReal(fmi2Component c, const fmi2ValueReference r[], size_t n, const fmi2Real value[]) {
    for (size_t i = 0; i < n; i++) ((Decay *)c)->real[r[i]] = value[i];
    return fmi2OK;
}

fmi2Status fmi2SetInteger(fmi2Component c, const fmi2ValueReference r[], size_t n, const fmi2Integer value[]) {
    ((Decay *)c)->count = value[0];
    return fmi2OK;
}

fmi2Status fmi2SetBoolean(fmi2Component c, const fmi2ValueReference r[], size_t n, const fmi2Boolean value[]) {
    ((Decay *)c)->sticky = value[0];
    return fmi2OK;
}

fmi2Status fmi2GetDirectionalDerivative(fmi2Component c, const fmi2ValueReference y[], size_t ny,
                                        const fmi2ValueReference v[], size_t nv, const fmi2Real dv[], fmi2Real dy[]) {
    double *real = ((Decay *)c)->real, d[] = {cos(real[K]) * real[U], 1, sin(real[K])};
    for (size_t i = 0; i < ny; i++) dy[i] = 0;
    for (size_t i = 0; i < nv; i++) dy[0] += d[v[i]] * dv[i];
    return fmi2OK;
}

/* What nobody calls here, but FMI has. */
#define OK(name, ...) \
    fmi2Status name(__VA_ARGS__) { return fmi2OK; }
typedef fmi2Component C;
typedef const fmi2ValueReference *R;
const char *fmi2GetTypesPlatform(void) { return fmi2TypesPlatform; }
const char *fmi2GetVersion(void) { return fmi2Version; }
OK(fmi2SetDebugLogging, C c, fmi2Boolean on, size_t n, const fmi2String w[])
OK(fmi2SetupExperiment, C c, fmi2Boolean a, fmi2Real t, fmi2Real s, fmi2Boolean b, fmi2Real e)
OK(fmi2ExitInitializationMode, C c)
OK(fmi2Terminate, C c)
OK(fmi2GetInteger, C c, R r, size_t n, fmi2Integer v[])
OK(fmi2GetBoolean, C c, R r, size_t n, fmi2Boolean v[])
OK(fmi2GetString, C c, R r, size_t n, fmi2String v[])
OK(fmi2SetString, C c, R r, size_t n, const fmi2String v[])
OK(fmi2GetFMUstate, C c, fmi2FMUstate *s)
OK(fmi2SetFMUstate, C c, fmi2FMUstate s)
OK(fmi2FreeFMUstate, C c, fmi2FMUstate *s)
OK(fmi2SerializedFMUstateSize, C c, fmi2FMUstate s, size_t *n)
OK(fmi2SerializeFMUstate, C c, fmi2FMUstate s, fmi2Byte b[], size_t n)
OK(fmi2DeSerializeFMUstate, C c, const fmi2Byte b[], size_t n, fmi2FMUstate *s)
OK(fmi2SetRealInputDerivatives, C c, R r, size_t n, const fmi2Integer o[], const fmi2Real v[])
OK(fmi2GetRealOutputDerivatives, C c, R r, size_t n, const fmi2Integer o[], fmi2Real v[])
OK(fmi2CancelStep, C c)
OK(fmi2GetStatus, C c, const fmi2StatusKind k, fmi2Status *s)
OK(fmi2GetRealStatus, C c, const fmi2StatusKind k, fmi2Real *s)
OK(fmi2GetIntegerStatus, C c, const fmi2StatusKind k, fmi2Integer *s)
OK(fmi2GetBooleanStatus, C c, const fmi2StatusKind k, fmi2Boolean *s)
OK(fmi2GetStringStatus, C c, const fmi2StatusKind k, fmi2String *s)
