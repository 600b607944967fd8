/* A plugin of QEMU's user-mode emulator (interface 1, as in QEMU 7.2) that counts instructions of
 * an AArch64 guest, and those of its dot-product extension among them.
 *
 * Whenever the guest calls getsid, which nothing else does while a model runs, a line with both
 * totals is added to the file that the environment variable COUNTS names. What lies between two
 * such calls is the difference of two lines. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GETSID 156 /* of AArch64 Linux */
#define ADD_U64 0  /* the only inline operation */

/* From QEMU's documentation of the plugin interface; Debian does not package its header. */
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_syscall)(plugin_id, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

static uint64_t instructions, dot_products;

static int is_dot_product(uint32_t word) {
  int vectors = (word & 0x9fe0fc00) == 0x0e809400;    /* SDOT, UDOT */
  int by_element = (word & 0x9fc0f400) == 0x0f80e000; /* the same, one operand an element */
  return vectors || by_element;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  size_t count = qemu_plugin_tb_n_insns(block);
  uint64_t dots = 0;
  for (size_t at = 0; at < count; at++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, at)), sizeof word);
    dots += is_dot_product(word);
  }
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, count);
  if (dots) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &dot_products, dots);
}

static void called(plugin_id id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  const char *path = getenv("COUNTS");
  FILE *file = number == GETSID && path ? fopen(path, "a") : NULL;
  (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7,
      (void)a8;
  if (!file) return;
  fprintf(file, "%llu %llu\n", (unsigned long long)instructions, (unsigned long long)dot_products);
  fclose(file);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
