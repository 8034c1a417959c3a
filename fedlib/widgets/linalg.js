// Small dense linear algebra, and FedAvg on the linear tasks. A matrix is an array of its rows.

export const zeros = (rows, columns) => Array.from({ length: rows }, () => new Array(columns).fill(0));
export const eye = (n) => zeros(n, n).map((row, i) => (row[i] = 1, row));
export const transpose = (A) => A[0].map((_, j) => A.map((row) => row[j]));
export const scale = (A, s) => A.map((row) => row.map((x) => s * x));
export const add = (A, B, s = 1) => A.map((row, i) => row.map((x, j) => x + s * B[i][j]));
export function dot(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}
export const norm = (x) => Math.sqrt(dot(x, x));

export function matmul(A, B) {
  const C = zeros(A.length, B[0].length);
  for (let i = 0; i < A.length; i++)
    for (let l = 0; l < B.length; l++)
      for (let j = 0; j < B[0].length; j++) C[i][j] += A[i][l] * B[l][j];
  return C;
}

// Orthonormal basis of the columns, as rows: Gram-Schmidt, twice against rounding.
export function basis(A) {
  const n = A.length, rows = [];
  for (let c = 0; c < A[0].length; c++) {
    const column = A.map((row) => row[c]), before = norm(column);
    for (let pass = 0; pass < 2; pass++)
      for (const q of rows) {
        const part = dot(q, column);
        for (let i = 0; i < n; i++) column[i] -= part * q[i];
      }
    const length = norm(column);
    if (length > 1e-10 * before) rows.push(column.map((x) => x / length));
  }
  return rows;
}

// Singular values, largest first, with right singular vectors: Jacobi's one-sided rotations,
// which keep small values exact where squaring would lose them.
export function svd(A) {
  const columns = transpose(A), n = columns.length, V = eye(n);
  for (let sweep = 0, off = 1; sweep < 30 && off > 1e-15; sweep++) {
    off = 0;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        const a = dot(columns[p], columns[p]), b = dot(columns[q], columns[q]);
        const c = dot(columns[p], columns[q]);
        if (!c) continue;
        off = Math.max(off, Math.abs(c) / Math.sqrt(a * b));
        const zeta = (b - a) / (2 * c);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const cos = 1 / Math.hypot(1, t), sin = t * cos;
        for (const M of [columns, V])
          for (let i = 0; i < M[p].length; i++)
            [M[p][i], M[q][i]] = [cos * M[p][i] - sin * M[q][i], sin * M[p][i] + cos * M[q][i]];
      }
  }
  const order = columns.map(norm).map((s, i) => [s, V[i]]).sort((x, y) => y[0] - x[0]);
  return { values: order.map(([s]) => s), vectors: order.map(([, v]) => v) };
}

// How far a vector sticks out of the span of orthonormal rows.
export const outside = (rows, x) =>
  norm(rows.reduce((left, q) => {
    const c = dot(q, x);
    return left.map((value, i) => value - c * q[i]);
  }, x));

// Distance of the columns of B, at most two, from the first coordinates, the truth: |(I - QQ')B*|.
// The largest singular value is found from squares without loss; small ones would not be.
export function distance(B, Q = basis(B)) {
  const n = B.length, k = B[0].length;
  if (Q.length < k) return 1;
  const gram = [0, 0, 0];
  for (let l = 0; l < n; l++) {
    const left = [0, 0];
    for (let j = 0; j < k; j++) {
      left[j] = l === j ? 1 : 0;
      for (const q of Q) left[j] -= q[j] * q[l];
    }
    gram[0] += left[0] * left[0];
    gram[1] += left[0] * left[1];
    gram[2] += left[1] * left[1];
  }
  const [a, b, d] = gram;
  return Math.min(1, Math.sqrt((a + d) / 2 + Math.hypot((a - d) / 2, b)));
}

export const mean = (matrices, weights = matrices.map(() => 1 / matrices.length)) =>
  matrices.reduce((sum, A, i) => add(sum, A, weights[i]), zeros(matrices[0].length, matrices[0][0].length));

// Local steps on 1/2 |Bw - B* head|^2, in place: B (n x k), w and head (k x c) are flat arrays.
export function localSteps(B, w, head, [n, k, c], steps, lr) {
  const r = new Float64Array(n * c), before = new Float64Array(k * c);
  for (let s = 0; s < steps; s++) {
    before.set(w);
    for (let l = 0; l < n; l++)
      for (let j = 0; j < c; j++) {
        let sum = l < k ? -head[l * c + j] : 0;
        for (let i = 0; i < k; i++) sum += B[l * k + i] * before[i * c + j];
        r[l * c + j] = lr * sum;
      }
    for (let i = 0; i < k; i++)
      for (let l = 0; l < n; l++) {
        let sum = 0;
        for (let j = 0; j < c; j++) {
          w[i * c + j] -= B[l * k + i] * r[l * c + j];
          sum += r[l * c + j] * before[i * c + j];
        }
        B[l * k + i] -= sum;
      }
  }
}

// FedAvg with all clients, from head w = 0: the server's [B, w] after 0 ... rounds. One step a round
// sees the mean head only, so one client that has it is enough.
export function fedavg(heads, B, steps, lr, rounds, weights = heads.map(() => 1 / heads.length)) {
  let w = zeros(heads[0].length, heads[0][0].length);
  const size = [B.length, B[0].length, w[0].length], [n, k, c] = size;
  const taught = (steps === 1 ? [mean(heads, weights)] : heads).map((head) => head.flat());
  const parts = steps === 1 ? [1] : weights;
  const rows = (flat, width) => Array.from({ length: flat.length / width }, (_, i) => [...flat.subarray(i * width, (i + 1) * width)]);
  const visited = [[B, w]], body = new Float64Array(n * k), head = new Float64Array(k * c);
  let server = Float64Array.from(B.flat()), top = Float64Array.from(w.flat());
  for (let t = 0; t < rounds; t++) {
    const bodies = new Float64Array(n * k), tops = new Float64Array(k * c);
    taught.forEach((truth, which) => {
      body.set(server);
      head.set(top);
      localSteps(body, head, truth, size, steps, lr);
      for (let i = 0; i < n * k; i++) bodies[i] += parts[which] * body[i];
      for (let i = 0; i < k * c; i++) tops[i] += parts[which] * head[i];
    });
    [server, top] = [bodies, tops];
    visited.push([rows(server, k), rows(top, c)]);
  }
  return visited;
}

// Heads of length 1 whose directions are spread evenly over an arc, as columns.
export const arc = (count, spread, centre) =>
  Array.from({ length: count }, (_, i) => {
    const angle = (Math.PI / 180) * (centre + spread * ((i + 0.5) / count - 0.5));
    return [[Math.cos(angle)], [Math.sin(angle)]];
  });

// The true plane, turned about its first axis by an angle in degrees: a matched start in R^3.
export function tilted(degrees, lr) {
  const angle = (Math.PI / 180) * degrees;
  return scale([[1, 0], [0, Math.cos(angle)], [0, Math.sin(angle)]], 1 / Math.sqrt(lr));
}
