/* A stand-in for libnvidia-ml.so.1 whose energy has a closed form, so that a test knows the truth.

   Each device draws P(t) watts at t seconds of CLOCK_MONOTONIC, and E(t) is the integral of P in closed form:

     constant  P = base                                  E = base t
     square    P = base +/- swing, half of T each        E = base t + swing T min(f, 1 - f)
     ramp      P = base + swing (2 f - 1)                E = base t + swing T (f f - f)
     sine      P = base + swing sin(2 pi f)              E = base t - swing T / 2 pi cos(2 pi f)
     noisy     P = base + swing (u(k) - u(k - 1)) / 2    E = base t + swing T / 2 (u(k - 1) + f (u(k) - u(k - 1)))

   with k = floor(t / T), f = t / T - k, and u(k) a number in [-1, 1] by a hash of k: the noise telescopes.
   fake_power_w and fake_energy_j give P and E of a device, for tests.

   What NVML shows of it: a counter that changes every `counter_latch_s` in steps of `counter_step_j`, and gauges that
   change every `gauge_latch_s` in steps of `gauge_step_w`, one of them averaged over `average_s` (the average has a
   closed form too). A module draws `module_w` beside its device, and beside that of `mate`. Each reading has a return
   code of its own in `codes`; a call for several may succeed while each of them fails.

   FAKE_NVML_PAGE names a file that is mapped: the `page` below, written by the test while the library runs. A test that
   only asks for the truth calls fake_open. */
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define DEVICES 32
#define LOADS 8

enum shape { CONSTANT, SQUARE, RAMP, SINE, NOISY };
enum reading {
  COUNTER, AVERAGE, INSTANT, MODULE_COUNTER, MODULE_AVERAGE, MODULE_INSTANT, MEMORY_AVERAGE, PLAIN_GAUGE, READINGS
};
struct dial {
  double base_w, swing_w, period_s;
  double counter_latch_s, counter_step_j, counter_gain;
  double gauge_latch_s, gauge_step_w, average_s;
  double module_w, memory_share;
  double limit_w, default_limit_w, highest_limit_w, module_limit_w;
  double zero_s; /* the counters count from this instant */
  int32_t shape, counter_of_module, mate, code;
  int32_t mig, virtual_mode, processes, profile; /* profile: its number, or -1 where none is supported */
  int32_t codes[READINGS];
};
struct page {
  int32_t count;     /* how many devices are visible */
  int32_t loads;     /* how often the driver was loaded; a handle of an earlier load is stale */
  int32_t init_code; /* what starting the library returns */
  int32_t fields;    /* 0: a library that does not know nvmlDeviceGetFieldValues' fields */
  struct dial dials[DEVICES];
};
struct handle { int index, load; };

static const volatile struct page *page;
static const struct page nothing;
static struct handle handles[LOADS][DEVICES];
static int started_in = -1;

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}
static double hashed(double k) { /* splitmix64, scaled to [-1, 1] */
  uint64_t x = (uint64_t)(int64_t)k * 0x9E3779B97F4A7C15ull + 0x632BE59BD9B4E019ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  x ^= x >> 31;
  return (double)(x >> 11) / 4503599627370496.0 - 1.0;
}
static double power(const struct dial *d, double t) {
  double k, f;
  if (d->shape == CONSTANT) return d->base_w;
  k = floor(t / d->period_s);
  f = t / d->period_s - k;
  switch (d->shape) {
    case SQUARE: return d->base_w + (f < 0.5 ? d->swing_w : -d->swing_w);
    case RAMP: return d->base_w + d->swing_w * (2 * f - 1);
    case SINE: return d->base_w + d->swing_w * sin(2 * M_PI * f);
    default: return d->base_w + d->swing_w * (hashed(k) - hashed(k - 1)) / 2;
  }
}
static double energy(const struct dial *d, double t) {
  double k, f, steady = d->base_w * t, turn = d->swing_w * d->period_s;
  if (d->shape == CONSTANT) return steady;
  k = floor(t / d->period_s);
  f = t / d->period_s - k;
  switch (d->shape) {
    case SQUARE: return steady + turn * (f < 0.5 ? f : 1 - f);
    case RAMP: return steady + turn * (f * f - f);
    case SINE: return steady - turn / (2 * M_PI) * cos(2 * M_PI * f);
    default: return steady + turn / 2 * (hashed(k - 1) + f * (hashed(k) - hashed(k - 1)));
  }
}
static double stepped(double value, double step) { return step > 0 ? floor(value / step + 0.5) * step : value; }
static double latched(double t, double latch_s) { return latch_s > 0 ? floor(t / latch_s) * latch_s : t; }

static void copy(struct dial *d, int index) { memcpy(d, (const void *)&page->dials[index], sizeof *d); }

/* Joules of a device since its counter's zero, or of the whole module. */
static double counted(const struct dial *d, double t, int of_module) {
  double at = fmax(latched(t, d->counter_latch_s), d->zero_s), joules = energy(d, at) - energy(d, d->zero_s);
  if (of_module) {
    joules += d->module_w * (at - d->zero_s);
    if (d->mate >= 0) {
      struct dial mate;
      copy(&mate, d->mate);
      joules += energy(&mate, at) - energy(&mate, d->zero_s);
    }
  }
  return stepped(joules * d->counter_gain, d->counter_step_j);
}
static double gauged(const struct dial *d, double t, double average_s, int of_module) {
  double at = latched(t, d->gauge_latch_s), from = at - average_s, watts;
  watts = average_s > 0 ? (energy(d, at) - energy(d, from)) / average_s : power(d, at);
  if (of_module) {
    watts += d->module_w;
    if (d->mate >= 0) {
      struct dial mate;
      copy(&mate, d->mate);
      watts += average_s > 0 ? (energy(&mate, at) - energy(&mate, from)) / average_s : power(&mate, at);
    }
  }
  return stepped(watts, d->gauge_step_w);
}
static double reading(const struct dial *d, enum reading which, double t) { /* in mJ or mW */
  switch (which) {
    case COUNTER: return counted(d, t, d->counter_of_module) * 1000;
    case MODULE_COUNTER: return counted(d, t, 1) * 1000;
    case INSTANT: return gauged(d, t, 0, 0) * 1000;
    case MODULE_AVERAGE: return gauged(d, t, d->average_s, 1) * 1000;
    case MODULE_INSTANT: return gauged(d, t, 0, 1) * 1000;
    case MEMORY_AVERAGE: return gauged(d, t, d->average_s, 0) * d->memory_share * 1000;
    default: return gauged(d, t, d->average_s, 0) * 1000;
  }
}

static int look(const struct handle *h, struct dial *d) {
  if (started_in < 0 || started_in != page->loads || h->load != page->loads) return UNINITIALIZED;
  copy(d, h->index);
  return d->code; /* of one that is not shown any more too: only the count tells */
}

static int map(const char *path) {
  int file = path ? open(path, O_RDONLY) : -1;
  void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *page, PROT_READ, MAP_SHARED, file, 0);
  if (page && page != &nothing) munmap((void *)page, sizeof *page);
  page = at == MAP_FAILED ? &nothing : at;
  if (file >= 0) close(file);
  return at != MAP_FAILED;
}
int fake_open(const char *path) { return map(path); }
double fake_power_w(int index, double t) {
  struct dial d;
  copy(&d, index);
  return power(&d, t);
}
double fake_energy_j(int index, double t) {
  struct dial d;
  copy(&d, index);
  return energy(&d, t);
}
double fake_module_energy_j(int index, double t) {
  struct dial d, mate;
  copy(&d, index);
  if (d.mate >= 0) copy(&mate, d.mate);
  return energy(&d, t) + d.module_w * t + (d.mate >= 0 ? energy(&mate, t) : 0.0);
}

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (!page) map(getenv("FAKE_NVML_PAGE"));
  if (page->init_code) return page->init_code;
  started_in = page->loads;
  for (int i = 0; i < DEVICES; i++) handles[started_in % LOADS][i] = (struct handle){i, started_in};
  return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
  if (started_in < 0) return UNINITIALIZED;
  started_in = -1;
  return SUCCESS;
}
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "an NVML error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  snprintf(text, size, "999.01");
  return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *n) {
  if (started_in != page->loads) return UNINITIALIZED;
  *n = (unsigned)page->count;
  return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **h) {
  if (started_in != page->loads) return UNINITIALIZED;
  if (index >= (unsigned)page->count) return INVALID_ARGUMENT;
  *h = &handles[started_in % LOADS][index];
  return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **h) {
  int index = -1;
  if (started_in != page->loads) return UNINITIALIZED;
  if (sscanf(uuid, "GPU-fake-%d", &index) != 1 || index < 0 || index >= page->count) return NOT_FOUND;
  *h = &handles[started_in % LOADS][index];
  return SUCCESS;
}
int nvmlDeviceGetUUID(struct handle *h, char *text, unsigned size) {
  struct dial d;
  int code = look(h, &d);
  if (!code) snprintf(text, size, "GPU-fake-%d", h->index);
  return code;
}
int nvmlDeviceGetName(struct handle *h, char *text, unsigned size) {
  (void)h;
  snprintf(text, size, "Fake accelerator");
  return SUCCESS;
}

static int milliwatts(struct handle *h, size_t offset, unsigned *value) {
  struct dial d;
  int code = look(h, &d);
  double watts = code ? 0.0 : *(const double *)((const char *)&d + offset);
  if (!code && watts <= 0) code = NOT_SUPPORTED;
  if (!code) *value = (unsigned)(watts * 1000);
  return code;
}
int nvmlDeviceGetEnforcedPowerLimit(struct handle *h, unsigned *value) {
  return milliwatts(h, offsetof(struct dial, limit_w), value);
}
int nvmlDeviceGetPowerManagementDefaultLimit(struct handle *h, unsigned *value) {
  return milliwatts(h, offsetof(struct dial, default_limit_w), value);
}
int nvmlDeviceGetPowerManagementLimitConstraints(struct handle *h, unsigned *least, unsigned *most) {
  *least = 100000;
  return milliwatts(h, offsetof(struct dial, highest_limit_w), most);
}
int nvmlDeviceGetMigMode(struct handle *h, unsigned *current, unsigned *pending) {
  struct dial d;
  int code = look(h, &d);
  if (!code && d.mig < 0) code = NOT_SUPPORTED;
  if (!code) *current = *pending = (unsigned)d.mig;
  return code;
}
int nvmlDeviceGetEccMode(struct handle *h, unsigned *current, unsigned *pending) {
  struct dial d;
  *current = *pending = 1;
  return look(h, &d);
}
int nvmlDeviceGetVirtualizationMode(struct handle *h, unsigned *mode) {
  struct dial d;
  int code = look(h, &d);
  if (!code) *mode = (unsigned)d.virtual_mode;
  return code;
}
int nvmlDeviceGetCudaComputeCapability(struct handle *h, int *major, int *minor) {
  struct dial d;
  *major = 9;
  *minor = 0;
  return look(h, &d);
}
int nvmlDeviceGetClockInfo(struct handle *h, unsigned kind, unsigned *megahertz) {
  struct dial d;
  *megahertz = kind == 1 ? 1980 : 2619;
  return look(h, &d);
}
struct temperature { unsigned version, sensor; int celsius; };
int nvmlDeviceGetTemperatureV(struct handle *h, struct temperature *t) {
  struct dial d;
  t->celsius = 41;
  return look(h, &d);
}
int nvmlDeviceGetCurrentClocksEventReasons(struct handle *h, unsigned long long *reasons) {
  struct dial d;
  int code = look(h, &d);
  *reasons = !code && d.limit_w < d.default_limit_w ? 4 : 0; /* the software power cap */
  return code;
}
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(struct handle *h, unsigned *count, struct process *list) {
  struct dial d;
  int code = look(h, &d);
  if (code) return code;
  if (*count < (unsigned)d.processes) {
    *count = (unsigned)d.processes;
    return INSUFFICIENT_SIZE;
  }
  *count = (unsigned)d.processes;
  for (int i = 0; i < d.processes; i++) list[i] = (struct process){1000u + (unsigned)i, 1u << 20, 0, 0};
  return SUCCESS;
}
struct profiles { unsigned version, known[8], asked[8], enforced[8]; };
int nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(struct handle *h, struct profiles *p) {
  struct dial d;
  int code = look(h, &d);
  if (!code && d.profile < 0) code = NOT_SUPPORTED;
  if (!code) p->enforced[d.profile / 32] = 1u << (d.profile % 32);
  return code;
}

int nvmlDeviceGetPowerUsage(struct handle *h, unsigned *value) {
  struct dial d;
  int code = look(h, &d);
  if (!code) code = d.codes[PLAIN_GAUGE];
  if (!code) *value = (unsigned)reading(&d, PLAIN_GAUGE, now());
  return code;
}
int nvmlDeviceGetTotalEnergyConsumption(struct handle *h, unsigned long long *value) {
  struct dial d;
  int code = look(h, &d);
  if (!code) code = d.codes[COUNTER];
  if (!code) *value = (unsigned long long)reading(&d, COUNTER, now());
  return code;
}

struct value {
  unsigned field, scope;
  long long at_us, took_us;
  unsigned type;
  int code;
  union { double d; unsigned u; unsigned long l; unsigned long long ll; long long sll; int i; } as;
};
static int known(unsigned field, unsigned scope) {
  switch (field) {
    case 83: return scope == 0 ? COUNTER : -1;
    case 191: return scope == 0 ? COUNTER : scope == 1 ? MODULE_COUNTER : -1;
    case 185: return scope == 0 ? AVERAGE : scope == 1 ? MODULE_AVERAGE : scope == 2 ? MEMORY_AVERAGE : -1;
    case 186: return scope == 0 ? INSTANT : scope == 1 ? MODULE_INSTANT : -1;
    default: return -1;
  }
}
int nvmlDeviceGetFieldValues(struct handle *h, int count, struct value *values) {
  struct dial d;
  int code = look(h, &d);
  double t = now();
  if (code) return code;
  if (!page->fields) return INVALID_ARGUMENT;
  for (int i = 0; i < count; i++) {
    struct value *v = &values[i];
    int which = known(v->field, v->scope);
    v->code = which < 0 ? NOT_SUPPORTED : d.codes[which];
    v->at_us = (long long)(t * 1e6);
    v->type = which == COUNTER || which == MODULE_COUNTER ? 3 : which == MEMORY_AVERAGE ? 0 : 1;
    if (v->field == 190 && v->scope <= 1) { /* the enforced limit of a scope */
      double limit_w = v->scope ? d.module_limit_w : d.limit_w;
      v->code = limit_w > 0 ? SUCCESS : NOT_SUPPORTED;
      v->type = 1;
      v->as.u = (unsigned)(limit_w * 1000);
    } else if (v->field == 251) { /* power smoothing, on where there are profiles */
      v->code = d.profile < 0 ? NOT_SUPPORTED : SUCCESS;
      v->type = 1;
      v->as.u = 1;
    } else if (!v->code && v->type == 3) {
      v->as.ll = (unsigned long long)reading(&d, which, t);
    } else if (!v->code && v->type == 0) {
      v->as.d = reading(&d, which, t);
    } else if (!v->code) {
      v->as.u = (unsigned)reading(&d, which, t);
    }
  }
  return SUCCESS;
}
