/*
 * The network of an instance: no interface but lo, every address of the world local to it, and whatever is sent there
 * redirected to one socket. All of it raw netlink, in two messages: spawning programs for it would cost more than the
 * rest of the launch.
 */
#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failure.h"
#include "sys.h"

enum {
  BATCH_BYTES_MAX = 4096,
  LO = 1, /* the first interface of every network namespace */
  LISTEN_BACKLOG = 512,
  HOOK_LOCAL_OUT = 3,
  PRIORITY_DNAT = -100,
  NETWORK_HEADER = 1,
  TRANSPORT_HEADER = 2,
  DNS_PORT = 53,
};

static const uint8_t own_address[4] = {10, 201, 0, 2};

/* Netlink messages, one behind the other */

struct batch {
  _Alignas(4) uint8_t bytes[BATCH_BYTES_MAX];
  size_t used, message;
  uint32_t sequence;
};

static void *put(struct batch *batch, const void *bytes, size_t length) {
  size_t padded = NLMSG_ALIGN(length);
  if (batch->used + padded > sizeof batch->bytes) fail_with(ENOBUFS, "network", "messages");
  void *at = batch->bytes + batch->used;
  memset(at, 0, padded);
  if (bytes) memcpy(at, bytes, length);
  batch->used += padded;
  return at;
}

static void message_begin(struct batch *batch, int type, int flags, const void *body, size_t length) {
  batch->message = batch->used;
  struct nlmsghdr header = {
      .nlmsg_type = (uint16_t)type,
      .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
      .nlmsg_seq = ++batch->sequence,
  };
  put(batch, &header, sizeof header);
  put(batch, body, length);
}

static void message_end(struct batch *batch) {
  ((struct nlmsghdr *)(batch->bytes + batch->message))->nlmsg_len = (uint32_t)(batch->used - batch->message);
}

static size_t attribute(struct batch *batch, int type, const void *bytes, size_t length) {
  size_t at = batch->used;
  struct nlattr header = {.nla_len = (uint16_t)(NLA_HDRLEN + length), .nla_type = (uint16_t)type};
  put(batch, &header, sizeof header);
  if (length > 0) put(batch, bytes, length);
  return at;
}

static void attribute_text(struct batch *batch, int type, const char *text) {
  attribute(batch, type, text, strlen(text) + 1);
}

static void attribute_number(struct batch *batch, int type, uint32_t value) {
  uint32_t big_endian = htonl(value);
  attribute(batch, type, &big_endian, sizeof big_endian);
}

static size_t nest(struct batch *batch, int type) { return attribute(batch, type | NLA_F_NESTED, NULL, 0); }

static void nest_end(struct batch *batch, size_t at) {
  ((struct nlattr *)(batch->bytes + at))->nla_len = (uint16_t)(batch->used - at);
}

/*
 * Sends all and waits for the answer to the last message that asked for one. 0, or the first error of a message before
 * `optional` (0: of any message).
 */
static int exchange(struct batch *batch, int protocol, uint32_t last, uint32_t optional) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  if (fd < 0) return errno;
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  int error = 0, answered = 0;
  if (sendto(fd, batch->bytes, batch->used, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0) error = errno;
  while (!error && !answered) {
    _Alignas(4) uint8_t buffer[4096];
    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) error = errno;
    int left = (int)got;
    for (struct nlmsghdr *header = (void *)buffer; !error && NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_type != NLMSG_ERROR) continue;
      const struct nlmsgerr *answer = NLMSG_DATA(header);
      if (answer->error && (!optional || header->nlmsg_seq < optional)) error = -answer->error;
      if (header->nlmsg_seq == last) answered = 1;
    }
  }
  close(fd);
  return error;
}

/* Addresses and routes */

static void put_link_up(struct batch *batch) {
  struct ifinfomsg link = {.ifi_index = LO, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  message_begin(batch, RTM_NEWLINK, 0, &link, sizeof link);
  message_end(batch);
}

static void put_address(struct batch *batch, int flags) {
  struct ifaddrmsg address = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = LO};
  message_begin(batch, RTM_NEWADDR, NLM_F_CREATE | flags, &address, sizeof address);
  attribute(batch, IFA_LOCAL, own_address, sizeof own_address);
  attribute(batch, IFA_ADDRESS, own_address, sizeof own_address);
  message_end(batch);
}

/* Every address is this machine's own, so that packets to it never look for an interface. */
static void put_default_route(struct batch *batch, int family, int flags) {
  int v4 = family == AF_INET;
  struct rtmsg route = {
      .rtm_family = (uint8_t)family,
      .rtm_table = v4 ? RT_TABLE_LOCAL : RT_TABLE_MAIN,
      .rtm_protocol = RTPROT_BOOT,
      .rtm_scope = v4 ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE,
      .rtm_type = RTN_LOCAL,
  };
  message_begin(batch, RTM_NEWROUTE, NLM_F_CREATE | flags, &route, sizeof route);
  int lo = LO;
  attribute(batch, RTA_OIF, &lo, sizeof lo);
  if (v4) attribute(batch, RTA_PREFSRC, own_address, sizeof own_address);
  message_end(batch);
}

static void bring_up(int redirected) {
  struct batch batch = {0};
  put_link_up(&batch);
  put_address(&batch, redirected ? 0 : NLM_F_ACK);
  uint32_t needed = batch.sequence;
  if (redirected) {
    put_default_route(&batch, AF_INET, 0);
    needed = batch.sequence;
    put_default_route(&batch, AF_INET6, NLM_F_ACK); /* where the host has IPv6 */
  }
  int error = exchange(&batch, NETLINK_ROUTE, batch.sequence, needed + 1);
  if (error) fail_with(error, "network", "loopback cannot be brought up");
}

/* Redirection: one chain that sees the first packet of whatever is sent */

static const char TABLE[] = "hutch", CHAIN[] = "out";

struct expression {
  size_t element, data;
};

static struct expression expression(struct batch *batch, const char *name) {
  struct expression made = {.element = nest(batch, NFTA_LIST_ELEM)};
  attribute_text(batch, NFTA_EXPR_NAME, name);
  made.data = nest(batch, NFTA_EXPR_DATA);
  return made;
}

static void expression_end(struct batch *batch, struct expression made) {
  nest_end(batch, made.data);
  nest_end(batch, made.element);
}

static void compare(struct batch *batch, const void *value, size_t length) {
  struct expression made = expression(batch, "cmp");
  attribute_number(batch, NFTA_CMP_SREG, NFT_REG_1);
  attribute_number(batch, NFTA_CMP_OP, NFT_CMP_EQ);
  size_t data = nest(batch, NFTA_CMP_DATA);
  attribute(batch, NFTA_DATA_VALUE, value, length);
  nest_end(batch, data);
  expression_end(batch, made);
}

static void match_meta(struct batch *batch, uint32_t key, uint8_t value) {
  struct expression made = expression(batch, "meta");
  attribute_number(batch, NFTA_META_DREG, NFT_REG_1);
  attribute_number(batch, NFTA_META_KEY, key);
  expression_end(batch, made);
  compare(batch, &value, sizeof value);
}

static void match_payload(struct batch *batch, uint32_t base, uint32_t offset, const void *value, size_t length) {
  struct expression made = expression(batch, "payload");
  attribute_number(batch, NFTA_PAYLOAD_DREG, NFT_REG_1);
  attribute_number(batch, NFTA_PAYLOAD_BASE, base);
  attribute_number(batch, NFTA_PAYLOAD_OFFSET, offset);
  attribute_number(batch, NFTA_PAYLOAD_LEN, (uint32_t)length);
  expression_end(batch, made);
  compare(batch, value, length);
}

static void accept_packet(struct batch *batch) {
  struct expression made = expression(batch, "immediate");
  attribute_number(batch, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
  size_t data = nest(batch, NFTA_IMMEDIATE_DATA), verdict = nest(batch, NFTA_DATA_VERDICT);
  attribute_number(batch, NFTA_VERDICT_CODE, NF_ACCEPT);
  nest_end(batch, verdict);
  nest_end(batch, data);
  expression_end(batch, made);
}

static void redirect(struct batch *batch) {
  uint16_t port = htons(EGRESS_PORT);
  struct expression made = expression(batch, "immediate");
  attribute_number(batch, NFTA_IMMEDIATE_DREG, NFT_REG_1);
  size_t data = nest(batch, NFTA_IMMEDIATE_DATA);
  attribute(batch, NFTA_DATA_VALUE, &port, sizeof port);
  nest_end(batch, data);
  expression_end(batch, made);
  made = expression(batch, "redir");
  attribute_number(batch, NFTA_REDIR_REG_PROTO_MIN, NFT_REG_1);
  expression_end(batch, made);
}

static void reject(struct batch *batch) {
  struct expression made = expression(batch, "reject");
  attribute_number(batch, NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH);
  uint8_t code = NFT_REJECT_ICMPX_ADMIN_PROHIBITED;
  attribute(batch, NFTA_REJECT_ICMP_CODE, &code, sizeof code);
  expression_end(batch, made);
}

static void nft_begin(struct batch *batch, int message, int flags) {
  struct nfgenmsg body = {.nfgen_family = NFPROTO_INET};
  message_begin(batch, NFNL_SUBSYS_NFTABLES << 8 | message, flags, &body, sizeof body);
}

static void nft_edge(struct batch *batch, int type) {
  struct nfgenmsg body = {.res_id = htons(NFNL_SUBSYS_NFTABLES)};
  message_begin(batch, type, 0, &body, sizeof body);
  message_end(batch);
}

static size_t rule(struct batch *batch, int flags) {
  nft_begin(batch, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND | flags);
  attribute_text(batch, NFTA_RULE_TABLE, TABLE);
  attribute_text(batch, NFTA_RULE_CHAIN, CHAIN);
  return nest(batch, NFTA_RULE_EXPRESSIONS);
}

static void rule_end(struct batch *batch, size_t expressions) {
  nest_end(batch, expressions);
  message_end(batch);
}

static void put_chain(struct batch *batch) {
  nft_begin(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE);
  attribute_text(batch, NFTA_TABLE_NAME, TABLE);
  message_end(batch);
  nft_begin(batch, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
  attribute_text(batch, NFTA_CHAIN_TABLE, TABLE);
  attribute_text(batch, NFTA_CHAIN_NAME, CHAIN);
  size_t hook = nest(batch, NFTA_CHAIN_HOOK);
  attribute_number(batch, NFTA_HOOK_HOOKNUM, HOOK_LOCAL_OUT);
  attribute_number(batch, NFTA_HOOK_PRIORITY, (uint32_t)PRIORITY_DNAT);
  nest_end(batch, hook);
  attribute_text(batch, NFTA_CHAIN_TYPE, "nat");
  message_end(batch);
}

/* Its own addresses are reached as ever; TCP and DNS to any other go to the keeper, and nothing else goes anywhere. */
static int redirect_all(void) {
  struct batch batch = {0};
  static const uint8_t loopback_net = 127, loopback6[16] = {[15] = 1};
  uint16_t dns = htons(DNS_PORT);
  nft_edge(&batch, NFNL_MSG_BATCH_BEGIN);
  put_chain(&batch);
  size_t at = rule(&batch, 0);
  match_meta(&batch, NFT_META_NFPROTO, NFPROTO_IPV4);
  match_payload(&batch, NETWORK_HEADER, 16, &loopback_net, sizeof loopback_net);
  accept_packet(&batch);
  rule_end(&batch, at);
  at = rule(&batch, 0);
  match_meta(&batch, NFT_META_NFPROTO, NFPROTO_IPV4);
  match_payload(&batch, NETWORK_HEADER, 16, own_address, sizeof own_address);
  accept_packet(&batch);
  rule_end(&batch, at);
  at = rule(&batch, 0);
  match_meta(&batch, NFT_META_NFPROTO, NFPROTO_IPV6);
  match_payload(&batch, NETWORK_HEADER, 24, loopback6, sizeof loopback6);
  accept_packet(&batch);
  rule_end(&batch, at);
  at = rule(&batch, 0);
  match_meta(&batch, NFT_META_L4PROTO, IPPROTO_TCP);
  redirect(&batch);
  rule_end(&batch, at);
  at = rule(&batch, 0);
  match_meta(&batch, NFT_META_L4PROTO, IPPROTO_UDP);
  match_payload(&batch, TRANSPORT_HEADER, 2, &dns, sizeof dns);
  redirect(&batch);
  rule_end(&batch, at);
  at = rule(&batch, NLM_F_ACK);
  reject(&batch);
  rule_end(&batch, at);
  uint32_t last = batch.sequence;
  nft_edge(&batch, NFNL_MSG_BATCH_END);
  return exchange(&batch, NETLINK_NETFILTER, last, 0);
}

/* Sockets */

/* On every address inside, of both families where there are both. */
static int listen_on(uint16_t port) {
  int off = 0;
  struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
  int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
      bind(fd, (struct sockaddr *)&any6, sizeof any6) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
    return fd;
  if (fd >= 0) close(fd);
  fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&any4, sizeof any4) < 0 || listen(fd, LISTEN_BACKLOG) < 0)
    fail("network", "port %u inside", port);
  return fd;
}

/* Answers must come from the address that queries are redirected to: it is bound to that one. */
static int dns_socket(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(EGRESS_PORT)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("network", "DNS");
  return fd;
}

struct network network_setup(int with_api) {
  /* First: without it the world's addresses must not become local ones. */
  struct network network = {.tcp_fd = -1, .dns_fd = -1, .api_fd = -1, .redirects = redirect_all() == 0};
  bring_up(network.redirects);
  /* The namespace belongs to the host, so that root inside has no power over it: open ports below 1024 and ping. */
  if (write_file_at(AT_FDCWD, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") < 0)
    fail("network", "ip_unprivileged_port_start");
  /* Group ids that are not mapped are refused, and a guest without ping is still a guest. */
  (void)write_file_at(AT_FDCWD, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
  /* Nothing here leaves by a wire: the host's default may pace by timers, as BBR does, and takes twice as long. */
  (void)write_file_at(AT_FDCWD, "/proc/sys/net/ipv4/tcp_congestion_control", "reno");
  if (with_api) network.api_fd = listen_on(API_PORT);
  if (network.redirects) {
    network.tcp_fd = listen_on(EGRESS_PORT);
    network.dns_fd = dns_socket();
  }
  return network;
}
