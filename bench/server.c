/* The server of the benchmarks: cheaper than any client, so that its cost hides nothing.
 *
 * Speaks as much HTTP/2 as a unary gRPC call needs and as much HTTP/1.1 as a GET or a POST with
 * Content-Length needs, on any number of loopback ports, in one thread, with epoll.
 * It answers every gRPC call with the same 64-byte message and every HTTP request with the same
 * 64-byte body. Flow control: windows are opened wide at the start and topped up; answers are so
 * small that the client's own window updates keep up.
 *
 *   server COUNT [SECONDS]     listens on COUNT ports, prints them on one line, ends after SECONDS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BODY = 64, MAX_EVENTS = 256, TOP_UP = 1 << 20 };
enum { DATA = 0, HEADERS = 1, RST = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW = 8, CONT = 9 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

typedef struct {
  int fd;
  int listener;
  int protocol; /* 0 not known yet, 1 HTTP/1.1, 2 HTTP/2 */
  uint8_t *in;
  size_t in_len, in_cap;
  uint8_t *out;
  size_t out_len, out_cap;
  uint32_t received;
} Peer;

static void grow(uint8_t **buf, size_t *cap, size_t need) {
  if (*cap >= need) return;
  while (*cap < need) *cap = *cap ? *cap * 2 : 16384;
  *buf = realloc(*buf, *cap);
  if (!*buf) abort();
}

static void put(Peer *p, const void *data, size_t len) {
  grow(&p->out, &p->out_cap, p->out_len + len);
  memcpy(p->out + p->out_len, data, len);
  p->out_len += len;
}

static void frame(Peer *p, uint8_t type, uint8_t flags, uint32_t stream, const void *body,
                  uint32_t len) {
  uint8_t head[9] = {len >> 16, len >> 8, len, type, flags,
                     stream >> 24, stream >> 16, stream >> 8, stream};
  put(p, head, 9);
  put(p, body, len);
}

/* HPACK without the dynamic table: ":status: 200" is indexed, the rest literal, never indexed. */
static const uint8_t RESPONSE[] = "\x88\x0f\x10\x10" "application/grpc";
static const uint8_t TRAILERS[] = "\x00\x0bgrpc-status\x01" "0";
static uint8_t message[5 + BODY];

static void answer_grpc(Peer *p, uint32_t stream) {
  frame(p, HEADERS, END_HEADERS, stream, RESPONSE, sizeof RESPONSE - 1);
  frame(p, DATA, 0, stream, message, sizeof message);
  frame(p, HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS, sizeof TRAILERS - 1);
}

static void top_up(Peer *p, uint32_t bytes) {
  uint8_t body[4] = {bytes >> 24, bytes >> 16, bytes >> 8, bytes};
  frame(p, WINDOW, 0, 0, body, 4);
}

static size_t http2(Peer *p) {
  size_t at = 0;
  while (p->in_len - at >= 9) {
    uint8_t *h = p->in + at;
    uint32_t len = h[0] << 16 | h[1] << 8 | h[2];
    uint32_t stream = (h[5] & 127u) << 24 | h[6] << 16 | h[7] << 8 | h[8];
    if (p->in_len - at < 9 + len) break;
    at += 9 + len;
    if (h[3] == SETTINGS && !(h[4] & ACK)) frame(p, SETTINGS, ACK, 0, "", 0);
    if (h[3] == PING && !(h[4] & ACK)) frame(p, PING, ACK, 0, h + 9, 8);
    if (h[3] == DATA) p->received += len;
    if ((h[3] == DATA || h[3] == HEADERS) && (h[4] & END_STREAM)) answer_grpc(p, stream);
    if (p->received >= TOP_UP) {
      top_up(p, p->received);
      p->received = 0;
    }
  }
  return at;
}

static char http_answer[256];
static size_t http_answer_len;

static size_t http1(Peer *p) {
  size_t at = 0;
  for (;;) {
    char *start = (char *)p->in + at;
    char *end = memmem(start, p->in_len - at, "\r\n\r\n", 4);
    if (!end) break;
    size_t total = end + 4 - start;
    char *length = memmem(start, total, "ontent-", 7);
    while (length && strncasecmp(length + 7, "length:", 7) != 0)
      length = memmem(length + 7, end - length - 7, "ontent-", 7);
    if (length) total += strtoul(length + 14, NULL, 10);
    if (p->in_len - at < total) break;
    put(p, http_answer, http_answer_len);
    at += total;
  }
  return at;
}

static int flush(Peer *p) {
  size_t sent = 0;
  while (sent < p->out_len) {
    ssize_t n = send(p->fd, p->out + sent, p->out_len - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      usleep(50); /* answers are tiny: a full socket buffer drains at once */
      continue;
    }
    if (n <= 0) return -1;
    sent += n;
  }
  p->out_len = 0;
  return 0;
}

static int serve(Peer *p) {
  for (;;) {
    grow(&p->in, &p->in_cap, p->in_len + 16384);
    ssize_t n = recv(p->fd, p->in + p->in_len, p->in_cap - p->in_len, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) return -1;
    p->in_len += n;
    if (!p->protocol) {
      static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
      size_t want = sizeof PREFACE - 1;
      if (memcmp(p->in, PREFACE, p->in_len < want ? p->in_len : want) != 0) {
        p->protocol = 1;
      } else if (p->in_len >= want) {
        static const uint8_t WIDE[] = {0, 3, 0, 1, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff};
        p->protocol = 2;
        memmove(p->in, p->in + want, p->in_len -= want);
        frame(p, SETTINGS, 0, 0, WIDE, sizeof WIDE);
        top_up(p, 0x7fffffff - 65535);
      } else {
        continue;
      }
    }
    size_t used = p->protocol == 2 ? http2(p) : http1(p);
    if (used) memmove(p->in, p->in + used, p->in_len -= used);
    if (p->out_len && flush(p) < 0) return -1;
  }
}

static int listen_on(int *port) {
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof addr;
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&addr, sizeof addr) || listen(fd, 1024)) {
    perror("server: bind");
    exit(1);
  }
  getsockname(fd, (void *)&addr, &len);
  *port = ntohs(addr.sin_port);
  return fd;
}

int main(int argc, char **argv) {
  int count = argc > 1 ? atoi(argv[1]) : 1;
  signal(SIGPIPE, SIG_IGN);
  alarm(argc > 2 ? atoi(argv[2]) : 3600);
  message[4] = BODY;
  memset(message + 5, 'x', BODY);
  http_answer_len = snprintf(http_answer, sizeof http_answer,
                             "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
                             "content-length: %d\r\n\r\n%.*s", BODY, BODY, message + 5);
  int ep = epoll_create1(0);
  for (int i = 0; i < count; i++) {
    int port;
    Peer *p = calloc(1, sizeof *p);
    p->listener = 1;
    p->fd = listen_on(&port);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = p};
    epoll_ctl(ep, EPOLL_CTL_ADD, p->fd, &ev);
    printf(i ? " %d" : "%d", port);
  }
  printf("\n");
  fflush(stdout);
  struct epoll_event events[MAX_EVENTS];
  for (;;) {
    int n = epoll_wait(ep, events, MAX_EVENTS, -1);
    for (int i = 0; i < n; i++) {
      Peer *p = events[i].data.ptr;
      if (!p->listener) {
        if (serve(p) < 0) {
          close(p->fd);
          free(p->in);
          free(p->out);
          free(p);
        }
        continue;
      }
      int one = 1, fd = accept4(p->fd, NULL, NULL, SOCK_NONBLOCK);
      if (fd < 0) continue;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      Peer *q = calloc(1, sizeof *q);
      q->fd = fd;
      struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = q};
      epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
  }
}
