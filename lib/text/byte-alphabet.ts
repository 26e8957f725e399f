/**
 * The alphabet of byte-level BPE (GPT-2): every byte has one printable character, so that vocabularies and merges can be
 * written as JSON strings. Printable Latin-1 stands for itself; the other 68 bytes take U+0100 and up, in order.
 */
const characters: readonly string[] = (() => {
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff)
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++))
})()

const byteByCharCode = new Map(characters.map((character, byte) => [character.charCodeAt(0), byte]))

/** The character that stands for a byte. */
export function byteCharacter(byte: number): string {
  return characters[byte] as string
}

/**
 * The bytes that a vocabulary entry stands for. An entry with a character outside the alphabet stands for its own UTF-8
 * bytes, as in the `ByteLevel` decoder of Rust tokenizers.
 */
export function bytesOfSpelling(spelling: string): Uint8Array {
  const bytes = new Uint8Array(spelling.length)
  for (let i = 0; i < spelling.length; i++) {
    const byte = byteByCharCode.get(spelling.charCodeAt(i))
    if (byte === undefined) return new TextEncoder().encode(spelling)
    bytes[i] = byte
  }
  return bytes
}
