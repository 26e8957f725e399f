const e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

/** The number that an e4m3fn byte stands for; not NaN. */
export function decodeE4m3(byte: number): number {
  const [exponent, fraction] = [(byte >> 3) & 15, byte & 7]
  const size = exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10)
  return byte & 0x80 ? -size : size
}

/** Float32 values of packed codes, low nibble first: (code · block scale) · scale, rounded once. */
export function decodeNvfp4(codes: Uint8Array, blockScales: Uint8Array, scale: number): Float32Array {
  return Float32Array.from({ length: 2 * codes.length }, (_, at) => {
    const code = ((codes[at >> 1] as number) >> (4 * (at & 1))) & 15
    const size = (e2m1[code & 7] as number) * decodeE4m3(blockScales[at >> 4] as number)
    return (code & 8 ? -size : size) * scale
  })
}
