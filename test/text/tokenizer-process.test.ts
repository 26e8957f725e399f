import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { fixtures, temporaryFolder } from './fixtures.js'

const root = new URL('../..', import.meta.url)
const compiled = new URL('dist/text/tokenizer.js', root)

/** Runs a program in a process of its own and gives what it printed; a process that does not end by itself fails. */
async function run(tokenizerModule: URL, body: string, execArgv: string[] = []): Promise<string> {
  const folder = temporaryFolder({ 'tokenizer.json': readFileSync(join(fixtures, 'nano-tokenizer.json'), 'utf8') })
  const source = `
    import { Tokenizer } from ${JSON.stringify(tokenizerModule.href)}
    const long = 'some text '.repeat(1000)
    const tokenizer = await Tokenizer.load(${JSON.stringify(folder)})
    ${body}`
  const options = { cwd: root, timeout: 50_000 }
  const args = [...execArgv, '--input-type=module', '-e', source]
  return (await promisify(execFile)(process.execPath, args, options)).stdout.trim()
}

const roundTrip = `console.log(tokenizer.decode(await tokenizer.encode(long, { special: true })) === long)`

test('from TypeScript source the worker works, and when idle it lets the process end', async () => {
  const source = new URL('lib/text/tokenizer.ts', root)
  expect(await run(source, roundTrip, ['--import', import.meta.resolve('tsx')])).toBe('true')
})

test.skipIf(!existsSync(compiled))('compiled too (needs npm run build)', async () => {
  expect(await run(compiled, roundTrip)).toBe('true')
})

test.skipIf(!existsSync(compiled))(
  'an awaited text keeps the process alive, process.exit does not wait (needs npm run build)',
  async () => {
    const body = `
    const pending = tokenizer.encode(long, { special: true })
    pending.then(() => { console.log('done'); tokenizer.encode(long, { special: true }); process.exit(0) })`
    expect(await run(compiled, body)).toBe('done')
  },
)
