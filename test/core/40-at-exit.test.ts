import { describe, expect, test } from 'vitest'
import { inPairs, rounds, runChild } from '../helpers/child.js'

/** Ending a process in the middle of work: the exit code is the asked-for one, no signal, nothing on stderr. */
describe('process exit', () => {
  test('a loaded model that was not disposed of lets the process end by itself', async () => {
    const { code, signal, stdout, stderr } = await runChild('exit', ['idle'])
    expect({ code, signal, stdout, stderr }).toEqual({ code: 0, signal: null, stdout: '938\n', stderr: '' })
  })

  test('calls that were refused do not hold it', async () => {
    const { code, signal, stdout, stderr } = await runChild('exit', ['refused'])
    expect({ code, signal, stdout, stderr }).toEqual({ code: 0, signal: null, stdout: '4\n', stderr: '' })
  })

  test('process.exit() in mid-stream, fifteen times', async () => {
    const delays = Array.from({ length: 15 }, (_, round) => round)
    const ends = await inPairs(delays.map((delay) => () => runChild('exit', ['exit', String(delay)])))
    for (const end of ends) expect(end).toEqual({ code: 7, signal: null, stdout: '', stderr: '' })
  }, 180_000)

  test('process.exit() while loading and in prefill', async () => {
    const tasks = [['load'], ...Array.from({ length: rounds(15, 3) }, (_, round) => ['prefill', String(5 * round)])]
    const ends = await inPairs(tasks.map((args) => () => runChild('exit', args)))
    for (const end of ends) expect(end).toEqual({ code: 7, signal: null, stdout: '', stderr: '' })
  }, 180_000)

  test('an uncaught exception in mid-stream ends the process as in any other program', async () => {
    const delays = Array.from({ length: rounds(15, 3) }, (_, round) => round)
    const ends = await inPairs(delays.map((delay) => () => runChild('exit', ['throw', String(delay)])))
    for (const { code, signal, stderr } of ends) {
      expect({ code, signal }).toEqual({ code: 1, signal: null })
      expect(stderr).toContain('Error: thrown in mid-stream')
    }
  }, 180_000)
})
