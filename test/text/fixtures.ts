import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

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
