/* See bb_host.h; a compiler of C++ takes this too.
 * The other side is blackbox.adapters.Hosted; messages are described in its wire.py. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bb_host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define MAGIC 0x31484242u /* "BBH1" in memory where the lowest byte comes first */
#define VERSION 1u
#define NAME 40
#define MOST 32 /* arrays in a call */
#define STATUS 70
#define WORDS 4096 /* bytes of the longest text that the trainer sends */

enum { CALL = 1, OUTPUT = 2, CLOSE = 3, ANSWER = 4, REFUSED = 5 };
enum { SHARED = 1, COLUMNS = 2 };

struct hello { uint32_t magic, version, rank, size, long_size, double_size, spare[2]; };
struct welcome { uint32_t magic, version, refused, length; uint64_t shared; };
struct header { uint32_t magic, kind, count, flags; uint64_t bytes; char name[NAME]; };
struct entry { char name[NAME]; int32_t type, rank; int64_t dims[4], first[4], whole[4]; };

static int state = 0; /* 0 not looked yet, 1 connected, -1 nobody trains */
static int line = -1, columns = 0, busy = 0;
static pid_t owner = 0;
static char *shared = NULL;
static uint64_t shared_size = 0;

static struct entry entries[MOST];
static const void *data_of[MOST];
static char *copies[MOST];
static uint32_t count = 0;

static struct entry answers[MOST];
static uint32_t answered = 0;
static char *answer = NULL;
static size_t answer_size = 0;
static const char *answer_data = NULL;
static int answer_columns = 0;

static void fail(const char *what, const char *name) {
  fflush(stdout);
  fprintf(stderr, "blackbox: %s%s%s\n", what, name ? ": " : "", name ? name : "");
  exit(STATUS);
}

static size_t size_of(int type) {
  switch (type) {
    case BB_FLOAT: case BB_INT: return 4;
    case BB_DOUBLE: case BB_LONG: return 8;
    case BB_BYTE: return 1;
  }
  fail("expected BB_FLOAT, BB_DOUBLE, BB_INT, BB_LONG or BB_BYTE as type, got another number", NULL);
  return 0;
}

static size_t padded(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

static size_t bytes_of(const struct entry *e) {
  size_t n = size_of(e->type);
  for (int k = 0; k < e->rank; k++) {
    if (e->dims[k] && n > SIZE_MAX / 64 / (size_t)e->dims[k])
      fail("expected fewer numbers than memory has room for, got more of", e->name);
    n *= (size_t)e->dims[k];
  }
  return n;
}

static void copy(void *to, const void *from, size_t n) {
  if (n) memcpy(to, from, n); /* an empty array may have no place */
}

static void read_all(void *to, size_t n) {
  char *p = (char *)to;
  while (n) {
    ssize_t got = recv(line, p, n, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail("the trainer has gone, so this program ends", NULL);
    p += got;
    n -= (size_t)got;
  }
}

static void write_all(struct iovec *parts, int n) {
  struct msghdr message;
  memset(&message, 0, sizeof message);
  while (n) {
    message.msg_iov = parts;
    message.msg_iovlen = (size_t)n;
    ssize_t sent = sendmsg(line, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) fail("the trainer has gone, so this program ends", NULL);
    while (n && (size_t)sent >= parts->iov_len) {
      sent -= (ssize_t)parts->iov_len;
      parts++;
      n--;
    }
    if (n) {
      parts->iov_base = (char *)parts->iov_base + sent;
      parts->iov_len -= (size_t)sent;
    }
  }
}

static void set_name(char *to, const char *name) {
  size_t n = name ? strlen(name) : 0;
  if (n >= NAME) fail("expected a name of at most 39 bytes, got", name);
  memset(to, 0, NAME);
  if (n) memcpy(to, name, n);
}

/* A text of the trainer of n bytes, the end of a longer one left out. */
static const char *text_of(uint64_t n) {
  static char text[WORDS + 1];
  if (n > WORDS) n = WORDS;
  read_all(text, (size_t)n);
  text[n] = 0;
  return text;
}

/* Map the memory of a file that the trainer has made, twice `size` bytes. */
static void share(const char *file, uint64_t size) {
  struct stat found;
  void *map = MAP_FAILED;
  int fd = open(file, O_RDWR | O_CLOEXEC);
  if (fd >= 0 && !fstat(fd, &found) && size % 8 == 0 && size <= (uint64_t)INT64_MAX / 2 &&
      (uint64_t)found.st_size == 2 * size)
    map = mmap(NULL, (size_t)(2 * size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) fail("expected the memory that the trainer shares, got none that can be used at", file);
  close(fd);
  shared = (char *)map;
  shared_size = size;
}

static int opened(int rank, int size) {
  const char *path = getenv("BLACKBOX_HOST");
  struct sockaddr_un place;
  struct hello hello = {MAGIC, VERSION, (uint32_t)rank, (uint32_t)size, sizeof(long), sizeof(double), {0, 0}};
  struct welcome welcome;
  struct iovec part = {&hello, sizeof hello};
  if (state > 0 && owner != getpid()) fail("a forked child asks: call from the process that opened", NULL);
  if (state) return state > 0;
  state = -1;
  if (!path || !*path) return 0;
  memset(&place, 0, sizeof place);
  place.sun_family = AF_UNIX;
  if (strlen(path) >= sizeof place.sun_path) fail("BLACKBOX_HOST is too long for a socket", path);
  strcpy(place.sun_path, path);
  line = socket(AF_UNIX, SOCK_STREAM, 0);
  if (line < 0) fail("no socket could be made", strerror(errno));
  fcntl(line, F_SETFD, FD_CLOEXEC);
  while (connect(line, (struct sockaddr *)&place, sizeof place) < 0)
    if (errno != EINTR) fail("no trainer listens at BLACKBOX_HOST; unset it to run without", path);
  state = 1;
  owner = getpid();
  write_all(&part, 1);
  read_all(&welcome, sizeof welcome);
  if (welcome.magic != MAGIC) fail("expected a trainer of the same byte order at BLACKBOX_HOST, got another", NULL);
  if (welcome.refused) fail(text_of(welcome.length), NULL);
  if (welcome.length) share(text_of(welcome.length), welcome.shared);
  return 1;
}

static void enter(void) {
  if (busy) fail("two threads ask at once: call from one, such as within '#pragma omp single'", NULL);
  busy = 1;
}

static void send_message(uint32_t kind, const char *name) {
  static const char zeros[8] = {0};
  struct header header = {MAGIC, kind, count, columns ? (uint32_t)COLUMNS : 0u, 0, ""};
  struct iovec parts[2 + 2 * MOST];
  int n = 2;
  set_name(header.name, name);
  for (uint32_t k = 0; k < count; k++) header.bytes += padded(bytes_of(&entries[k]));
  parts[0].iov_base = &header;
  parts[0].iov_len = sizeof header;
  parts[1].iov_base = entries;
  parts[1].iov_len = count * sizeof entries[0];
  if (shared && header.bytes > 16384 && header.bytes <= shared_size && kind == CALL) {
    char *to = shared;
    header.flags |= SHARED;
    for (uint32_t k = 0; k < count; k++) {
      copy(to, data_of[k], bytes_of(&entries[k]));
      to += padded(bytes_of(&entries[k]));
    }
  } else {
    for (uint32_t k = 0; k < count; k++) {
      size_t bytes = bytes_of(&entries[k]), more = padded(bytes) - bytes;
      parts[n].iov_base = (void *)(uintptr_t)data_of[k];
      parts[n++].iov_len = bytes;
      if (more) {
        parts[n].iov_base = (void *)(uintptr_t)zeros;
        parts[n++].iov_len = more;
      }
    }
  }
  write_all(parts, n);
  count = 0;
}

static void put(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                const void *data) {
  struct entry *e;
  if (count == MOST) fail("expected at most 32 arrays in a call, got one more", name);
  if (rank < 0 || rank > 4) fail("expected 0 to 4 dimensions, got others of", name);
  e = &entries[count];
  memset(e, 0, sizeof *e);
  set_name(e->name, name);
  e->type = type;
  e->rank = rank;
  size_of(type);
  for (int k = 0; k < rank; k++) {
    if (dims[k] < 0) fail("expected sizes from 0 on, got a negative one of", name);
    e->dims[k] = dims[k];
    e->first[k] = first ? first[k] : 0;
    e->whole[k] = whole ? whole[k] : 0;
  }
  data_of[count++] = data;
}

int bb_open(void) { return opened(0, 1); }

int bb_open_part(int rank, int size) { return opened(rank, size); }

void bb_columns(int on) { columns = on; }

void bb_put(const char *name, int type, int rank, const int *dims, const void *data) {
  if (bb_open()) put(name, type, rank, dims, NULL, NULL, data);
}

static void put_copy(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                     const void *data) {
  size_t bytes;
  put(name, type, rank, dims, first, whole, data);
  bytes = bytes_of(&entries[count - 1]);
  free(copies[count - 1]);
  copies[count - 1] = (char *)malloc(bytes ? bytes : 1);
  if (!copies[count - 1]) fail("no memory for a copy of", name);
  copy(copies[count - 1], data, bytes);
  data_of[count - 1] = copies[count - 1];
}

void bb_put_copy(const char *name, int type, int rank, const int *dims, const void *data) {
  if (bb_open()) put_copy(name, type, rank, dims, NULL, NULL, data);
}

void bb_put_part(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                 const void *data) {
  if (bb_open()) put(name, type, rank, dims, first, whole, data);
}

void bb_put_part_copy(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                      const void *data) {
  if (bb_open()) put_copy(name, type, rank, dims, first, whole, data);
}

/* Whether what the trainer says of an array can be one; ends its name. */
static int is_answer(struct entry *e) {
  int right = (e->type == BB_FLOAT || e->type == BB_DOUBLE) && e->rank >= 0 && e->rank <= 4;
  for (int k = 0; right && k < e->rank; k++) right = e->dims[k] >= 0;
  e->name[NAME - 1] = 0;
  return right;
}

int bb_call(const char *call) {
  struct header header;
  size_t bytes = 0;
  if (!bb_open()) return 0;
  enter();
  send_message(CALL, call);
  read_all(&header, sizeof header);
  if (header.magic != MAGIC) fail("expected an answer of the trainer, got something else", NULL);
  if (header.kind == REFUSED) fail(text_of(header.bytes), NULL);
  if (header.kind != ANSWER || header.count > MOST)
    fail("expected an answer of at most 32 arrays, got something else", NULL);
  answer_columns = header.flags & COLUMNS ? 1 : 0;
  read_all(answers, header.count * sizeof answers[0]);
  for (answered = 0; answered < header.count; answered++) {
    if (!is_answer(&answers[answered])) fail("expected arrays of floats in an answer, got something else", NULL);
    bytes += padded(bytes_of(&answers[answered]));
  }
  if (bytes != header.bytes) fail("expected an answer as long as its arrays, got another length", NULL);
  if (header.flags & SHARED) {
    if (!shared || bytes > shared_size)
      fail("expected an answer in the memory that the trainer shares, got none", NULL);
    answer_data = shared + shared_size;
  } else {
    if (answer_size < bytes) {
      free(answer);
      answer = (char *)malloc(bytes);
      answer_size = answer ? bytes : 0;
      if (!answer) fail("no memory for an answer", NULL);
    }
    read_all(answer, bytes);
    answer_data = answer;
  }
  busy = 0;
  return 1;
}

static void converted(char *to, int to_type, const char *from, int from_type, size_t n) {
  if (to_type == from_type) {
    copy(to, from, n * size_of(to_type));
  } else if (to_type == BB_FLOAT && from_type == BB_DOUBLE) {
    for (size_t k = 0; k < n; k++) ((float *)(void *)to)[k] = (float)((const double *)(const void *)from)[k];
  } else if (to_type == BB_DOUBLE && from_type == BB_FLOAT) {
    for (size_t k = 0; k < n; k++) ((double *)(void *)to)[k] = ((const float *)(const void *)from)[k];
  } else {
    fail("expected BB_FLOAT or BB_DOUBLE for an answer, got another type", NULL);
  }
}

static void get(uint32_t place, const char *name, int type, int rank, const int *dims, void *data) {
  const char *from = answer_data;
  size_t n = 1;
  int same = answers[place].rank == rank;
  for (uint32_t k = 0; k < place; k++) from += padded(bytes_of(&answers[k]));
  for (int k = 0; same && k < rank; k++) same = answers[place].dims[k] == dims[k];
  if (!same) {
    char text[400];
    int at = snprintf(text, sizeof text, "the answer %s has the shape (", answers[place].name);
    for (int k = 0; k < answers[place].rank; k++)
      at += snprintf(text + at, sizeof text - (size_t)at, "%s%lld", k ? ", " : "", (long long)answers[place].dims[k]);
    at += snprintf(text + at, sizeof text - (size_t)at, "), and the program asks for (");
    for (int k = 0; k < rank && k < 4; k++)
      at += snprintf(text + at, sizeof text - (size_t)at, "%s%d", k ? ", " : "", dims[k]);
    snprintf(text + at, sizeof text - (size_t)at, "): mend one of the two");
    fail(text, NULL);
  }
  (void)name;
  for (int k = 0; k < rank; k++) n *= (size_t)dims[k];
  converted((char *)data, type, from, answers[place].type, n);
}

void bb_get(const char *name, int type, int rank, const int *dims, void *data) {
  if (state <= 0) fail("bb_get without an answer: it must follow a bb_call that returned 1", name);
  if (answer_columns != columns) fail("bb_columns was changed between bb_call and bb_get", name);
  for (uint32_t k = 0; k < answered; k++)
    if (!strcmp(answers[k].name, name)) {
      get(k, name, type, rank, dims, data);
      return;
    }
  fail("the answer has no array of the name", name);
}

static int exchange(const char *call, int type, const void *in, int in_rank, const int *in_dims, void *out,
                    int out_rank, const int *out_dims) {
  if (!bb_open()) return 0;
  put("", type, in_rank, in_dims, NULL, NULL, in);
  bb_call(call);
  if (answered != 1) fail("bb_exchange is for calls with one answer; take bb_put, bb_call, bb_get for", call);
  get(0, call, type, out_rank, out_dims, out);
  return 1;
}

int bb_exchange(const char *call, const double *in, int in_rank, const int *in_dims, double *out, int out_rank,
                const int *out_dims) {
  return exchange(call, BB_DOUBLE, in, in_rank, in_dims, out, out_rank, out_dims);
}

int bb_exchange_float(const char *call, const float *in, int in_rank, const int *in_dims, float *out,
                      int out_rank, const int *out_dims) {
  return exchange(call, BB_FLOAT, in, in_rank, in_dims, out, out_rank, out_dims);
}

void bb_output(const char *name, int type, int rank, const int *dims, const void *data) {
  if (!bb_open()) return;
  enter();
  if (count) fail("bb_output between bb_put and bb_call", name);
  put(name, type, rank, dims, NULL, NULL, data);
  send_message(OUTPUT, name);
  busy = 0;
}

void bb_close(void) {
  if (state <= 0 || owner != getpid()) return;
  enter();
  send_message(CLOSE, "");
  close(line);
  if (shared) munmap(shared, (size_t)(2 * shared_size));
  shared = NULL;
  line = -1;
  state = -1;
  busy = 0;
}
