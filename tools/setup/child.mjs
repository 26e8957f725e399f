import { spawn } from 'node:child_process'
import { closeSync, openSync, readSync } from 'node:fs'
import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { Interrupted } from './setup-error.mjs'

const windows = process.platform === 'win32'
let current
let stoppedBy
let onGroup = () => {}

/**
 * Runs a program without standard input. Its output goes to stderr, or to the file `log`, whose new text `onText` gets
 * as it grows; writing to a file rather than to a pipe, the program can finish a compilation even if set-up is killed.
 * It leads a process group of its own, so that a signal stops the whole tree in order.
 */
export async function run(command, args, { cwd, env = process.env, log, onText } = {}) {
  throwIfStopped()
  const file = log === undefined ? undefined : openSync(log, 'a')
  const stream = file ?? 2
  const child = spawn(command, args, {
    cwd,
    env,
    detached: !windows,
    stdio: ['ignore', stream, stream],
    windowsHide: true,
  })
  current = child
  if (child.pid !== undefined) onGroup(child.pid)
  const stopReading = file !== undefined && onText !== undefined ? follow(log, onText) : () => {}
  try {
    const { code, signal } = await new Promise((resolve, reject) => {
      child.once('error', reject)
      child.once('exit', (code, signal) => resolve({ code, signal }))
    })
    if (stoppedBy !== undefined) throw new Interrupted(!(await groupEnds(child.pid)) || signal === 'SIGKILL')
    return { code: code ?? 128 + constants.signals[signal] }
  } finally {
    current = undefined
    onGroup(undefined)
    stopReading()
    if (file !== undefined) closeSync(file)
  }
}

/** Waits until what the program started has ended too; false when it has not within five seconds. */
async function groupEnds(group) {
  const deadline = Date.now() + 5_000
  while (!windows && signalGroup(group, 0)) {
    if (Date.now() > deadline) return false
    await sleep(20)
  }
  return true
}

/** Calls `onText` with what is added to the file, until the returned function is called, which reads the rest. */
function follow(path, onText) {
  const file = openSync(path, 'r')
  const block = Buffer.alloc(65_536)
  let offset = 0
  const read = () => {
    for (;;) {
      const bytes = readSync(file, block, 0, block.length, offset)
      if (bytes === 0) return
      offset += bytes
      onText(block.toString('latin1', 0, bytes))
    }
  }
  const timer = setInterval(read, 100)
  return () => {
    clearInterval(timer)
    read()
    closeSync(file)
  }
}

/** Tells `listener` the process group of each program that starts, and undefined when it has ended. */
export function onProcessGroup(listener) {
  onGroup = listener
}

/** From now on a signal stops the running program and makes `run` throw; `signalExitCode` then tells the exit code. */
export function handleSignals() {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      // A second signal no longer asks.
      const next = stoppedBy === undefined ? signal : 'SIGKILL'
      stoppedBy ??= signal
      if (current?.pid === undefined) return
      if (windows) current.kill(next)
      else signalGroup(current.pid, next)
    })
  }
}

export function throwIfStopped() {
  if (stoppedBy !== undefined) throw new Interrupted()
}

/** 130 for Ctrl-C, as shells count. */
export function signalExitCode() {
  return 128 + constants.signals[stoppedBy]
}

/** Sends a signal to a process group; 0 only asks whether it lives. */
export function signalGroup(group, signal) {
  try {
    process.kill(-group, signal)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}
