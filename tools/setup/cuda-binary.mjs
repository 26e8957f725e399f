/**
 * The GPU code of a binary by what `cuobjdump` prints of it without options: for each source file the targets with
 * machine code, and those with PTX.
 */
export function parseListing(text) {
  const found = new Map()
  const blocks = text.matchAll(/^Fatbin (elf|ptx) code:\n=+\n((?:.+\n?)*)/gm)
  for (const [, kind, body] of blocks) {
    const arch = /^arch = sm_(\w+)$/m.exec(body)?.[1]
    const file = /^identifier = (.+)$/m.exec(body)?.[1]
    if (arch === undefined || file === undefined) continue
    const entry = found.get(file) ?? { elf: [], ptx: [] }
    entry[kind].push(arch)
    found.set(file, entry)
  }
  return found
}

/**
 * What a binary built for `archs` from the .cu `files` lacks or has too much of, one sentence each: machine code for
 * every target, PTX for the last alone.
 */
export function findFaults(listing, files, archs) {
  const entries = [...parseListing(listing)]
  return files.flatMap((file) => {
    // The compiler notes absolute paths, and a compiler cache those of another checkout.
    const [, code] = entries.find(([path]) => path === file || path.endsWith(`/${file}`)) ?? []
    if (code === undefined) return [`${file} has no GPU code in the binary: nothing calls it, or it was not built`]
    const missing = archs.filter((arch) => !code.elf.includes(arch))
    const faults = missing.length > 0 ? [`${file} has no machine code for ${missing.join(', ')}`] : []
    const newest = archs.at(-1)
    if (!code.ptx.includes(newest)) faults.push(`${file} has no PTX for ${newest}`)
    const surplus = code.ptx.filter((arch) => arch !== newest)
    if (surplus.length > 0) faults.push(`${file} has PTX for ${surplus.join(', ')}, which is only weight`)
    return faults
  })
}
