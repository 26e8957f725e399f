import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Every file below the given files and folders, relative to root with `/`, sorted. Missing ones are left out. */
export function listFiles(root, entries) {
  const files = []
  const visit = (path) => {
    const info = statSync(join(root, path), { throwIfNoEntry: false })
    if (info?.isDirectory()) {
      for (const name of readdirSync(join(root, path))) visit(`${path}/${name}`)
    } else if (info !== undefined) {
      files.push(path)
    }
  }
  for (const entry of entries) visit(entry)
  return files.sort()
}

/** Size and time of each file, in a form that compares as text. */
function statsOf(root, files) {
  return files.map((file) => {
    const { size, mtimeMs } = statSync(join(root, file))
    return [file, size, mtimeMs]
  })
}

/** SHA-256 over the names and contents of the files and over the settings. */
function hashOf(root, files, settings) {
  const hash = createHash('sha256').update(JSON.stringify(settings))
  for (const file of files) {
    const content = readFileSync(join(root, file))
    hash.update(`\0${file}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}

/**
 * What an output is made from: `files` and `settings` (anything that JSON can hold). Take it before the work starts, so
 * that an edit made meanwhile leaves the output stale.
 */
export function takeFingerprint(root, files, settings) {
  return { taken: Date.now(), hash: hashOf(root, files, settings), settings, stats: statsOf(root, files) }
}

/**
 * Whether the output that `stampFile` stands for was made from these files and settings. Sizes and times decide when
 * they are equal, contents otherwise (a fresh checkout of the same commit is not stale). A file as young as the stamp
 * is read too: an edit within the clock's grain would not show in its time.
 */
export function isFresh(root, stampFile, output, files, settings) {
  const stamp = readJson(join(root, stampFile))
  if (stamp === undefined) return false
  const made = statSync(join(root, output), { throwIfNoEntry: false })
  if (made === undefined || made.size !== stamp.output?.size || made.mtimeMs !== stamp.output?.mtimeMs) return false
  if (JSON.stringify(stamp.settings) !== JSON.stringify(settings)) return false
  const stats = statsOf(root, files)
  const young = stats.some(([, , mtimeMs]) => mtimeMs >= stamp.taken - 20)
  if (!young && JSON.stringify(stats) === JSON.stringify(stamp.stats)) return true
  if (hashOf(root, files, settings) !== stamp.hash) return false
  writeStamp(root, stampFile, output, { ...stamp, taken: Date.now(), stats })
  return true
}

/** Records that `output` was made from what the fingerprint holds. */
export function writeStamp(root, stampFile, output, fingerprint) {
  const { size, mtimeMs } = statSync(join(root, output))
  const path = join(root, stampFile)
  mkdirSync(dirname(path), { recursive: true })
  const aside = `${path}.${process.pid}`
  writeFileSync(aside, JSON.stringify({ ...fingerprint, output: { size, mtimeMs } }))
  renameSync(aside, path)
}

/** The parsed file, or undefined when it is missing or damaged. */
export function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}
