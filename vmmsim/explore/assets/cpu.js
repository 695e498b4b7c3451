// Which registers belong together, and what their bits are called (SDM vol. 1, 3.4; vol. 3, 2.2 to 2.5).

const GENERAL = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
const ALWAYS = new Set(["rip", "rflags", ...GENERAL.slice(0, 8)]);

const GROUPS = [
  ["general", (name) => GENERAL.includes(name) || name === "rip" || name === "rflags"],
  ["segments and tables", (name) => /^(cs|ds|es|fs|gs|ss|ldt|tr|gdt|idt)(\.|_|$)/.test(name)],
  ["control", (name) => /^(cr\d|efer|xcr0|dr\d)$/.test(name)],
  ["others", () => true],
];

const BITS = {
  rflags: {
    CF: 0,
    PF: 2,
    AF: 4,
    ZF: 6,
    SF: 7,
    TF: 8,
    IF: 9,
    DF: 10,
    OF: 11,
    NT: 14,
    RF: 16,
    VM: 17,
    AC: 18,
    VIF: 19,
    VIP: 20,
    ID: 21,
  },
  cr0: { PE: 0, MP: 1, EM: 2, TS: 3, ET: 4, NE: 5, WP: 16, AM: 18, NW: 29, CD: 30, PG: 31 },
  cr4: {
    VME: 0,
    PVI: 1,
    TSD: 2,
    DE: 3,
    PSE: 4,
    PAE: 5,
    MCE: 6,
    PGE: 7,
    PCE: 8,
    OSFXSR: 9,
    OSXMMEXCPT: 10,
    UMIP: 11,
    LA57: 12,
    VMXE: 13,
    SMXE: 14,
    FSGSBASE: 16,
    PCIDE: 17,
    OSXSAVE: 18,
    SMEP: 20,
    SMAP: 21,
    PKE: 22,
  },
  efer: { SCE: 0, LME: 8, LMA: 10, NXE: 11 },
};
/** The flags that a reader looks for, set or not. */
const FLAGS_SHOWN = ["CF", "PF", "AF", "ZF", "SF", "IF", "DF", "OF"];

const bit = (digits, at) => Boolean((BigInt("0x" + digits) >> BigInt(at)) & 1n);

/** The names of the bits that are set. */
function bitNames(register, digits) {
  const names = Object.entries(BITS[register] || {})
    .filter(([, at]) => bit(digits, at))
    .map(([name]) => name);
  const iopl = register === "rflags" ? (parseInt(digits, 16) >> 12) & 3 : 0;
  return iopl ? [...names, `IOPL=${iopl}`] : names;
}

/** real, protected or long mode, or "" where the trace does not say. `get` gives a register's digits. */
function modeName(get) {
  const cr0 = get("cr0");
  if (cr0 === undefined) return "";
  if (!bit(cr0, 0)) return "real mode";
  if (bit(get("efer") || "0", 10)) return "long mode";
  return bit(get("rflags") || "0", 17) ? "virtual-8086 mode" : "protected mode";
}
