import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { signalGroup, throwIfStopped } from './child.mjs'
import { readJson } from './fingerprint.mjs'

/**
 * A lock file, by which runs of set-up take turns. It names its holder and the process group that the holder started: a
 * lock is dead when both are, so that a compiler whose set-up was killed is not raced by the next one.
 */
export class Lock {
  #path
  #owner = { pid: process.pid, started: startOf(process.pid), token: randomUUID(), group: undefined }

  constructor(path) {
    this.#path = path
  }

  /** Resolves once this process holds the lock. `onWait` is told the holder's process id, once, if there is a wait. */
  async acquire(onWait) {
    mkdirSync(dirname(this.#path), { recursive: true })
    let told = false
    while (!this.#create() && !this.#takeOver()) {
      throwIfStopped()
      const holder = readJson(this.#path)
      if (!told && holder !== undefined) {
        onWait(holder.pid)
        told = true
      }
      await sleep(100)
    }
  }

  /** Records which process group works for the holder now. */
  setGroup(group) {
    this.#owner.group = group
    this.#replace()
  }

  release() {
    if (readJson(this.#path)?.token === this.#owner.token) rmSync(this.#path, { force: true })
  }

  #create() {
    try {
      writeFileSync(this.#path, JSON.stringify(this.#owner), { flag: 'wx' })
      return true
    } catch (error) {
      if (error.code === 'EEXIST') return false
      throw error
    }
  }

  /** Replaces the lock of a dead holder. The claim file lets one of several waiters do it; it looks again inside. */
  #takeOver() {
    const dead = readDead(this.#path)
    if (dead === undefined) return false
    const claim = `${this.#path}.claim`
    try {
      writeFileSync(claim, '', { flag: 'wx' })
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
      // Whoever made a claim this old died within the next few lines.
      if (ageOf(claim) > 10_000) rmSync(claim, { force: true })
      return false
    }
    try {
      if (readDead(this.#path) !== dead) return false
      this.#replace()
      return true
    } finally {
      rmSync(claim, { force: true })
    }
  }

  #replace() {
    const aside = `${this.#path}.${process.pid}`
    writeFileSync(aside, JSON.stringify(this.#owner))
    renameSync(aside, this.#path)
  }
}

/** The text of a lock whose holder is gone, else undefined. */
function readDead(path) {
  let text
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
  try {
    const { pid, started, group } = JSON.parse(text)
    return isAlive(pid, started) || (group !== undefined && signalGroup(group, 0)) ? undefined : text
  } catch {
    // Between its creation and its first byte a lock is empty for a moment.
    return ageOf(path) > 5_000 ? text : undefined
  }
}

/** Process ids come round again, soon in containers: a process that started at another time is another one. */
function isAlive(pid, started) {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (error.code !== 'EPERM') return false
  }
  return startOf(pid) === started
}

/** When the process started, in the kernel's ticks since boot; undefined where the system does not tell. */
function startOf(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name, in parentheses, may hold spaces; the start time is the 20th field after it.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

function ageOf(path) {
  const info = statSync(path, { throwIfNoEntry: false })
  return info === undefined ? 0 : Date.now() - info.mtimeMs
}
