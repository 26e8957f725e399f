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

const notAByte = -1
const byteByCharCode = new Int16Array(0x100 + 68).fill(notAByte)
for (const [byte, character] of characters.entries()) byteByCharCode[character.charCodeAt(0)] = byte

/** The character that stands for a byte. */
export function byteCharacter(byte: number): string {
  return characters[byte] as string
}

/**
 * Writes the bytes that a vocabulary entry stands for.
 *
 * @returns their number, or nothing for an entry with a character outside the alphabet: that one stands for its own UTF-8
 * bytes, as in the `ByteLevel` decoder of Rust tokenizers
 */
export function writeBytes(spelling: string, into: Uint8Array, at: number): number | undefined {
  for (let i = 0; i < spelling.length; i++) {
    const byte = byteByCharCode[spelling.charCodeAt(i)] ?? notAByte
    if (byte === notAByte) return undefined
    into[at + i] = byte
  }
  return spelling.length
}
