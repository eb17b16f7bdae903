/* A stand-in for libnvidia-ml.so.1 whose energy has a closed form, so that a test knows the truth.

   Device i draws  P(t) = BASE + 100 i + SWING sin(2 pi t / T)  watts at t seconds of CLOCK_MONOTONIC, so
   E(a, b) = (BASE + 100 i)(b - a) + SWING T / 2 pi (cos(2 pi a / T) - cos(2 pi b / T))  joules.

   FAKE_NVML_COUNT     how many devices (default 1, at most 8)
   FAKE_NVML_CONTROL   a file of 8 x 4 int32, mapped: per device {lost, no energy, no power, counter reset}.
                       A test writes it while the library runs. `reset` starts the counter at 0 from the first
                       reading that sees it. */
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define GPU_IS_LOST 15
#define DEVICES 8
#define BASE 400.0
#define SWING 150.0
#define T 1.7

struct device { int index; double reset_j; int was_reset; };
static struct device devices[DEVICES];
static const volatile int32_t *control;
static const int32_t quiet[DEVICES * 4];

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}
static double power(int i, double t) { return BASE + 100.0 * i + SWING * sin(2 * M_PI * t / T); }
static double energy(int i, double t) {
  return (BASE + 100.0 * i) * t - SWING * T / (2 * M_PI) * cos(2 * M_PI * t / T);
}
static int knob(const struct device *d, int which) { return control[d->index * 4 + which]; }
static unsigned count(void) {
  const char *text = getenv("FAKE_NVML_COUNT");
  return text ? (unsigned)atoi(text) : 1u;
}

int nvmlInitWithFlags(unsigned flags) {
  const char *path = getenv("FAKE_NVML_CONTROL");
  (void)flags;
  control = quiet;
  if (path) {
    int file = open(path, O_RDONLY);
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof quiet, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) control = page;
    if (file >= 0) close(file);
  }
  for (int i = 0; i < DEVICES; i++) devices[i] = (struct device){.index = i};
  return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "an NVML error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  snprintf(text, size, "999.01");
  return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *n) {
  *n = count();
  return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **d) {
  if (index >= count() || index >= DEVICES) return INVALID_ARGUMENT;
  *d = &devices[index];
  return SUCCESS;
}
int nvmlDeviceGetUUID(struct device *d, char *text, unsigned size) {
  snprintf(text, size, "GPU-fake-%d", d->index);
  return SUCCESS;
}
int nvmlDeviceGetName(struct device *d, char *text, unsigned size) {
  (void)d;
  snprintf(text, size, "Fake accelerator");
  return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *milliwatts) {
  (void)d;
  *milliwatts = 1400000;
  return SUCCESS;
}
int nvmlDeviceGetMigMode(struct device *d, unsigned *current, unsigned *pending) {
  (void)d; (void)current; (void)pending;
  return NOT_SUPPORTED;
}
int nvmlDeviceGetPowerUsage(struct device *d, unsigned *milliwatts) {
  if (knob(d, 0)) return GPU_IS_LOST;
  if (knob(d, 2)) return NOT_SUPPORTED;
  *milliwatts = (unsigned)(power(d->index, now()) * 1000);
  return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(struct device *d, unsigned long long *millijoules) {
  double t = now();
  if (knob(d, 0)) return GPU_IS_LOST;
  if (knob(d, 1)) return NOT_SUPPORTED;
  if (knob(d, 3) && !d->was_reset) {
    d->was_reset = 1;
    d->reset_j = energy(d->index, t);
  }
  *millijoules = (unsigned long long)((energy(d->index, t) - d->reset_j) * 1000);
  return SUCCESS;
}
