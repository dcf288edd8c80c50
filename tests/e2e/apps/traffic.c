/* traffic: the clients and the server of the end-to-end test, one static program.
 *
 *   traffic echo PORT...                 serves: sends back what it gets
 *   traffic first ADDRESS PORT [MS]      connects as its first instruction; one echo; tries again for MS milliseconds
 *   traffic loop ADDRESS PORT RATE SECONDS [TIMEOUT_MS]
 *                                        RATE new connections a second, one echo each
 *   traffic hold ADDRESS PORT COUNT SECONDS
 *                                        COUNT connections kept open, an echo on each every 10 ms
 *
 * A client prints one JSON object when it ends, which it also does when its standard input was a pipe and ends
 * (SECONDS is the longest). It exits with 1 when something failed. Times are microseconds or Unix seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, MOST = 4096, SAMPLES = 1 << 17 };
static const char TEXT[SIZE + 1] = "This text is a canary: nobody may read it on the wire. 12345678\n";

struct conn {
    int fd;
    enum { FREE, CONNECTING, WAITING, IDLE } state;
    int got;
    long since, at; /* start of the connection or echo; when the next one is due */
};

static struct conn conns[MOST];
static struct pollfd polls[MOST + 1];
static struct sockaddr_storage target;
static socklen_t target_length;
static int samples[SAMPLES];
static long started, ok, failed, sampled;
static long errors[8];
static double first_failure, last_failure, last_success;
static long last_ok, longest_gap;
enum { REFUSED, RESET, TIMEOUT, CLOSED, OTHER };
static const char *names[] = {"refused", "reset", "timeout", "closed", "other"};

static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000L + t.tv_nsec / 1000; }
static double wall(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static void die(const char *what) { perror(what); exit(2); }

static void aim(const char *address, int port) {
    struct sockaddr_in *v4 = (void *)&target;
    struct sockaddr_in6 *v6 = (void *)&target;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET, v4->sin_port = htons(port), target_length = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6, v6->sin6_port = htons(port), target_length = sizeof *v6;
    } else {
        fprintf(stderr, "traffic: %s is no address\n", address);
        exit(2);
    }
}

static int kind(int e) {
    switch (e) {
    case 0: return CLOSED;
    case ECONNREFUSED: return REFUSED;
    case ECONNRESET: case EPIPE: return RESET;
    case ETIMEDOUT: case EAGAIN: case EINPROGRESS: return TIMEOUT;
    default: return OTHER;
    }
}

static void note_ok(long us) {
    long t = now();
    if (last_ok && t - last_ok > longest_gap) longest_gap = t - last_ok;
    last_ok = t, ok++, last_success = wall();
    if (sampled < SAMPLES) samples[sampled++] = us;
}

static void note_failure(int e) {
    last_failure = wall();
    if (!failed++) first_failure = last_failure;
    errors[kind(e)]++;
}

static void drop(struct conn *c) { close(c->fd); c->state = FREE; }

static void fail(struct conn *c, int e) { note_failure(e); drop(c); }

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static int report(void) {
    long t = now();
    if (last_ok && t - last_ok > longest_gap) longest_gap = t - last_ok; // away until the end
    qsort(samples, sampled, sizeof *samples, ascending);
    printf("{\"started\":%ld,\"ok\":%ld,\"failed\":%ld", started, ok, failed);
    for (int i = 0; i <= OTHER; i++) printf(",\"%s\":%ld", names[i], errors[i]);
    printf(",\"p50_us\":%d,\"p99_us\":%d,\"max_us\":%d", sampled ? samples[sampled / 2] : 0, sampled ? samples[sampled * 99 / 100] : 0,
           sampled ? samples[sampled - 1] : 0);
    printf(",\"longest_gap_us\":%ld,\"first_failure\":%.3f,\"last_failure\":%.3f,\"last_ok\":%.3f}\n", longest_gap, first_failure, last_failure,
           last_success);
    return failed > 0;
}

static void start(struct conn *c) {
    started++;
    c->since = now(), c->got = 0, c->state = CONNECTING;
    if ((c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) die("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (void *)&target, target_length) && errno != EINPROGRESS) fail(c, errno);
}

static void say(struct conn *c) {
    c->got = 0, c->state = WAITING;
    if (send(c->fd, TEXT, SIZE, MSG_NOSIGNAL) != SIZE) fail(c, errno);
}

/* What a connection that poll woke has to do; true when an echo is complete. */
static int advance(struct conn *c) {
    char in[SIZE];
    if (c->state == CONNECTING) {
        int e = 0;
        socklen_t l = sizeof e;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &l);
        if (e) fail(c, e); else say(c);
        return 0;
    }
    ssize_t n = recv(c->fd, in, sizeof in, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0 || c->state == IDLE) { fail(c, n < 0 ? errno : 0); return 0; }
    return (c->got += n) >= SIZE;
}

static int watch_stdin(void) {
    struct stat s;
    return fstat(0, &s) == 0 && (S_ISFIFO(s.st_mode) || S_ISSOCK(s.st_mode));
}

/* RATE new connections a second (held = 0), or `held` connections with an echo every 10 ms. */
static int drive(long rate, int held, long seconds, long timeout) {
    last_ok = now(); // a first answer that is late is a gap too
    long begin = now(), end = begin + seconds * 1000000, next = begin;
    int input = watch_stdin();
    for (int i = 0; i < held; i++) start(&conns[i]);
    for (;;) {
        long t = now();
        int over = t >= end, live = 0, n = 0;
        if (!held && !over)
            for (; next <= t; next += 1000000 / rate) {
                int i = 0;
                while (i < MOST && conns[i].state != FREE) i++;
                if (i == MOST) { started++; note_failure(EAGAIN); } else start(&conns[i]);
            }
        if (held && over) break;
        for (int i = 0; i < MOST; i++) {
            struct conn *c = &conns[i];
            if ((c->state == CONNECTING || c->state == WAITING) && t - c->since > timeout) fail(c, ETIMEDOUT);
            if (c->state == IDLE && t >= c->at) { c->since = t; say(c); }
            if (c->state != FREE) live++;
        }
        if (!live && (over || held)) break;
        for (int i = 0; i < MOST; i++)
            if (conns[i].state != FREE) polls[n++] = (struct pollfd){conns[i].fd, conns[i].state == CONNECTING ? POLLOUT : POLLIN, 0};
        int sockets = n;
        if (input && !over) polls[n++] = (struct pollfd){0, POLLIN, 0};
        struct timespec nap = {0, held ? 1000000 : over ? 5000000 : (next - t > 1 ? next - t : 1) * 1000 % 1000000000};
        if (ppoll(polls, n, &nap, 0) < 0 && errno != EINTR) die("poll");
        if (n > sockets && polls[sockets].revents) {
            char in[64];
            if (read(0, in, sizeof in) <= 0) end = now();
        }
        for (int i = 0; i < sockets; i++) {
            if (!polls[i].revents) continue;
            struct conn *c = conns;
            while (c->state == FREE || c->fd != polls[i].fd) c++;
            if (advance(c)) {
                note_ok(now() - c->since);
                if (held) c->state = IDLE, c->at = c->since + 10000; else drop(c);
            }
        }
    }
    return report();
}

static int first(long patience) {
    long begin = now(), t;
    int e = 0;
    do {
        struct timeval limit = {5, 0};
        int fd = socket(target.ss_family, SOCK_STREAM, 0), got = 0;
        char in[SIZE];
        started++;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        errno = 0;
        if (connect(fd, (void *)&target, target_length) == 0 && send(fd, TEXT, SIZE, MSG_NOSIGNAL) == SIZE) {
            ssize_t n;
            errno = 0;
            while (got < SIZE && (n = recv(fd, in, sizeof in, 0)) > 0) got += n;
        }
        e = errno, t = now();
        close(fd);
        if (got == SIZE) {
            note_ok(t - begin);
            report();
            return 0;
        }
        note_failure(e);
        usleep(5000);
    } while (t - begin < patience * 1000);
    report();
    return 1;
}

static void echo(int count, char **ports) {
    int ep = epoll_create1(0);
    struct epoll_event events[64];
    char buffer[65536];
    if (ep < 0) die("epoll");
    for (int i = 0; i < count; i++) {
        struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(ports[i]))};
        int on = 1, off = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        if (bind(fd, (void *)&any, sizeof any) || listen(fd, 4096)) die("listen");
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.u64 = (uint64_t)fd << 1 | 1}});
    }
    for (;;) {
        int n = epoll_wait(ep, events, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.u64 >> 1, on = 1;
            if (events[i].data.u64 & 1) {
                int peer = accept4(fd, 0, 0, 0);
                if (peer < 0) continue;
                setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                epoll_ctl(ep, EPOLL_CTL_ADD, peer, &(struct epoll_event){EPOLLIN, {.u64 = (uint64_t)peer << 1}});
                continue;
            }
            ssize_t got = recv(fd, buffer, sizeof buffer, 0);
            if (got <= 0 || send(fd, buffer, got, MSG_NOSIGNAL) != got) close(fd);
        }
    }
}

static void stop(int signal) { _exit(128 + signal); }

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 0);
    signal(SIGTERM, stop); /* process 1 of a container has no default action */
    signal(SIGINT, stop);
    signal(SIGPIPE, SIG_IGN);
    if (argc >= 3 && !strcmp(argv[1], "echo")) echo(argc - 2, argv + 2);
    if (argc >= 4) aim(argv[2], atoi(argv[3]));
    if (argc >= 4 && !strcmp(argv[1], "first")) return first(argc > 4 ? atol(argv[4]) : 0);
    if (argc >= 6 && !strcmp(argv[1], "loop")) return drive(atol(argv[4]), 0, atol(argv[5]), (argc > 6 ? atol(argv[6]) : 2000) * 1000);
    if (argc >= 6 && !strcmp(argv[1], "hold")) {
        int held = atoi(argv[4]);
        return drive(0, held < MOST ? held : MOST, atol(argv[5]), 10000000);
    }
    fprintf(stderr, "usage: traffic echo PORT... | first ADDRESS PORT [MS] | loop ADDRESS PORT RATE SECONDS [MS] | hold ADDRESS PORT COUNT SECONDS\n");
    return 2;
}
