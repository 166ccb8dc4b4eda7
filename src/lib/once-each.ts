/** What is made of an object is made once, and kept for as long as the object. */
export function onceEach<Of extends object, Made>(make: (of: Of) => Made): (of: Of) => Made {
  const known = new WeakMap<Of, Made>()
  return (of) => {
    const earlier = known.get(of)
    if (earlier !== undefined) return earlier
    const made = make(of)
    known.set(of, made)
    return made
  }
}
