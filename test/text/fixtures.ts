import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'

const root = new URL('../..', import.meta.url).pathname
export const fixtures = join(root, 'test/fixtures/text')

/** Reads a JSON fixture of this folder. */
export function readFixture<T>(name: string): T {
  return JSON.parse(readFileSync(join(fixtures, name), 'utf8')) as T
}

/** The tiny checkpoint's text files: bundled, or those of the teacher; undefined when neither is there. */
export const tinyFolder = [join(root, 'models/tiny'), process.env.NIBBLET_TEACHER ?? ''].find(
  (folder) => folder !== '' && existsSync(join(folder, 'tokenizer.json')) && existsSync(join(folder, 'heldout.jsonl')),
)

export const tinyMissing = 'needs models/tiny, or NIBBLET_TEACHER set to the BF16 teacher'

const made: string[] = []
afterAll(() => {
  for (const folder of made) rmSync(folder, { recursive: true, force: true })
})

/** A folder with the given files, removed after the test file. */
export function temporaryFolder(files: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), 'nibblet-text-'))
  made.push(folder)
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  return folder
}
